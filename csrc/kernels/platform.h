// What a function needs to be called from a CUDA kernel and from a CPU loop alike.
#pragma once

#if defined(__CUDACC__)
#define FASTCAM_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTCAM_HOST_DEVICE inline __attribute__((always_inline))
#endif
