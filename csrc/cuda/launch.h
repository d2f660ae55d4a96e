// Where and how a kernel is launched: the tensor's device and torch's current stream on it.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>

#include "kernels/block.cuh"
#include "operands/checks.h"
#include "operands/tensors.h"

namespace fastcam::cuda {

// Blocks of kLanes x kWarps threads, and the dynamic shared memory of each
struct Grid {
  int64_t blocks, shared_bytes;

  Grid(int64_t blocks, int64_t shared_bytes = 0) : blocks(blocks), shared_bytes(shared_bytes) {}
};

// Makes the tensor's device current for as long as it lives.
class Launch {
 public:
  explicit Launch(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <class... Parameters, class... Arguments>
  void operator()(
      void (*kernel)(Parameters...), const Grid& grid, const Arguments&... arguments) const {
    constexpr int64_t kMaxBlocks = 2147483647;
    if (grid.blocks == 0) return;  // CUDA refuses a launch of no block
    check(
        grid.blocks <= kMaxBlocks, "the tensors are too large for one launch: ", grid.blocks,
        " blocks");
    // always the same value, as another thread may launch the kernel for another shape
    if (needs_opt_in(static_bytes(kernel), grid.shared_bytes))
      STD_CUDA_CHECK(cudaFuncSetAttribute(
          kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
          static_cast<int>(device(kernel).block_memory)));
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
    config.blockDim = dim3(kLanes, kWarps);
    config.dynamicSmemBytes = grid.shared_bytes;
    config.stream = stream_;
    STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
  }

  // What a kernel's plan is made from
  template <class... Parameters>
  Device device(void (*kernel)(Parameters...)) const {
    return {
        attribute(cudaDevAttrMultiProcessorCount),
        attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - static_bytes(kernel),
        attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor)};
  }

 private:
  template <class... Parameters>
  static int64_t static_bytes(void (*kernel)(Parameters...)) {
    cudaFuncAttributes attributes;
    STD_CUDA_CHECK(cudaFuncGetAttributes(&attributes, kernel));
    return static_cast<int64_t>(attributes.sharedSizeBytes);
  }

  static int64_t attribute(cudaDeviceAttr name) {
    int index, value;
    STD_CUDA_CHECK(cudaGetDevice(&index));
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, index));
    return value;
  }

  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

// Calls f with a value of the maps' type: float or double.
template <class Function>
void dispatch_maps(const Tensor& maps, const Function& f) {
  if (maps.scalar_type() == ScalarType::Double) {
    f(double{});
  } else {
    f(float{});
  }
}

}  // namespace fastcam::cuda
