// Where and how a kernel is launched: the tensor's device and torch's current stream on it.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>

#include "kernels/block.cuh"
#include "operands.h"

namespace fastcam::cuda {

// Makes the tensor's device current for as long as it lives.
class Launch {
 public:
  explicit Launch(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  // kernel<<<blocks, 32 x 8 threads>>>(arguments...)
  template <class... Parameters, class... Arguments>
  void operator()(
      void (*kernel)(Parameters...), int64_t blocks, const Arguments&... arguments) const {
    constexpr int64_t kMaxBlocks = 2147483647;
    check(blocks <= kMaxBlocks, "the tensors are too large for one launch: ", blocks, " blocks");
    kernel<<<static_cast<unsigned>(blocks), dim3(kLanes, kRows), 0, stream_>>>(arguments...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

inline int64_t ceil_div(int64_t n, int64_t d) {
  return (n + d - 1) / d;
}

// Blocks for each of `count` enlarged maps: enough to fill the GPU, but each with more to write than the
// `bounds` samples that it reads for the range.
inline int64_t shares_per_map(int64_t count, int64_t positions, int64_t bounds) {
  constexpr int64_t kFill = 1024;
  const int64_t elements = std::max<int64_t>(4 * kThreads, 4 * bounds);
  return std::clamp<int64_t>(ceil_div(kFill, count), 1, ceil_div(positions, elements));
}

}  // namespace fastcam::cuda
