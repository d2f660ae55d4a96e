// What the launches of kernels/enlarge.cuh have in common.
#pragma once

#include "cuda/launch.h"
#include "kernels/enlarge.cuh"

namespace fastcam::cuda {

// Small maps for a kernel, and the shared memory that holds one of them where it fits
template <class F>
struct StagedMaps {
  MapSource<F> source;
  int64_t shared_bytes;

  StagedMaps(
      const Tensor& partial, int64_t classes, int64_t slices, bool relu, const Enlargement<F>& e) {
    const int64_t positions = e.map_positions();
    const int64_t groups = slice_groups(slices, positions);
    const int64_t bytes = groups * positions * int64_t{sizeof(F)};
    const bool staged = bytes <= kMaxStagedMap;
    source = {data<F>(partial), classes, slices, relu, staged, static_cast<int>(groups)};
    shared_bytes = staged ? bytes : 0;
  }

  StagedMaps(const Tensor& maps, int64_t classes, const Enlargement<F>& e)
      : StagedMaps(maps, classes, 1, false, e) {}
};

// partial (N, slices, K, positions) as maps of `size` to (N * K, *enlarged) in `result`
void launch_upsample(
    const Launch& launch, const Tensor& partial, int64_t count, int64_t classes, int64_t slices,
    bool relu, const Size& size, const Size& enlarged, bool normalize, double eps,
    const Tensor& result);

}  // namespace fastcam::cuda
