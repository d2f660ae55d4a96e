// Where and how a kernel is launched: the tensor's device and torch's current stream on it.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "kernels/block.cuh"
#include "operands.h"

namespace fastcam::cuda {

// Blocks of kLanes x kRows threads, the dynamic shared memory of each, and blocks a cluster
struct Grid {
  int64_t blocks, shared_bytes, cluster;

  Grid(int64_t blocks, int64_t shared_bytes = 0, int64_t cluster = 1)
      : blocks(blocks), shared_bytes(shared_bytes), cluster(cluster) {}
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
    constexpr int64_t kMaxBlocks = 2147483647, kUnasked = 48 * 1024;
    check(
        grid.blocks <= kMaxBlocks, "the tensors are too large for one launch: ", grid.blocks,
        " blocks");
    if (grid.shared_bytes > kUnasked)
      STD_CUDA_CHECK(cudaFuncSetAttribute(
          kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
          static_cast<int>(grid.shared_bytes)));
    cudaLaunchAttribute cluster;
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(grid.cluster);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
    config.blockDim = dim3(kLanes, kRows);
    config.dynamicSmemBytes = grid.shared_bytes;
    config.stream = stream_;
    config.attrs = &cluster;
    config.numAttrs = grid.cluster > 1 ? 1 : 0;
    STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
  }

  // What plans are made from; clusters where `kernel` was compiled for them and FASTCAM_CLUSTERS=1
  // chooses them.
  template <class... Parameters>
  Device device(void (*kernel)(Parameters...)) const {
    int index;
    STD_CUDA_CHECK(cudaGetDevice(&index));
    const auto attribute = [&](cudaDeviceAttr name) {
      int value;
      STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, index));
      return value;
    };
    const char* chosen = std::getenv("FASTCAM_CLUSTERS");
    bool clusters = chosen && std::string(chosen) == "1";
    if (clusters) {
      cudaFuncAttributes attributes;
      STD_CUDA_CHECK(cudaFuncGetAttributes(&attributes, kernel));
      clusters = attributes.ptxVersion >= 90;
    }
    return {
        attribute(cudaDevAttrMultiProcessorCount),
        attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
        attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor), clusters};
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

inline int64_t ceil_div(int64_t n, int64_t d) {
  return (n + d - 1) / d;
}

// Calls f with a value of the maps' type: float or double.
template <class Function>
void dispatch_maps(const Tensor& maps, const Function& f) {
  if (maps.scalar_type() == ScalarType::Double) {
    f(double{});
  } else {
    f(float{});
  }
}

// Blocks for each of `count` maps of `positions`: enough to fill the GPU, but each with more to write than
// the `reads` elements that it looks at first.
inline int64_t shares_per_map(int64_t count, int64_t positions, int64_t reads) {
  constexpr int64_t kFill = 1024;
  const int64_t elements = std::max<int64_t>(4 * kThreads, 4 * reads);
  return std::clamp<int64_t>(ceil_div(kFill, count), 1, ceil_div(positions, elements));
}

}  // namespace fastcam::cuda
