// What kernels ask of the hardware beyond plain CUDA, an instruction a function. Without nvcc,
// tests/kernels/emulator.h has the same functions on a CPU.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)

namespace fastcam {

// The block's dynamic shared memory
__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

// An array of the block's static shared memory; `Tag` tells arrays of one type apart.
template <class Tag, class T, int kCount>
__device__ __forceinline__ T (&static_memory()) [kCount] {
  __shared__ T memory[kCount];
  return memory;
}

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// ---- asynchronous copies of a thread (sm_80), complete for it after wait_for_copies ----

// 16 bytes from device memory to shared memory, both aligned to 16
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global))
               : "memory");
#else
  *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
#endif
}

// Ends a group of copies.
__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for this thread's groups, but for the latest kPending.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

}  // namespace fastcam

#endif  // __CUDACC__
