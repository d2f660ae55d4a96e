// Whether a device runs these kernels: asked of the driver, which loads them for it.
#include <cuda_runtime.h>

#include "kernels/cam.cuh"

namespace fastcam::cuda {

// Why the driver does not run the kernels on a device, in its words; null if it does. It has compiled the
// kernels for the device then, if the binary holds them as PTX alone.
extern "C" __attribute__((visibility("default"))) const char* fastcam_refusal(int device) {
  int before = 0;
  cudaGetDevice(&before);
  cudaError_t error = cudaSetDevice(device);
  cudaFuncAttributes attributes;
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, fold_slices_kernel<float>);
  cudaSetDevice(before);
  cudaGetLastError();  // or the next launch would report it
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace fastcam::cuda
