// Min-max over each map, a block a map.
#pragma once

#include "kernels/block.cuh"
#include "kernels/interpolate.h"
#include "kernels/scalar.h"

namespace fastcam {

template <class T>
__global__ void normalize_kernel(
    const T* maps, int64_t positions, arithmetic_t<T> eps, arithmetic_t<T>* result) {
  using F = arithmetic_t<T>;
  const T* map = maps + blockIdx.x * positions;
  F* target = result + blockIdx.x * positions;
  const F seed = load(map[0]);
  Extremes<F> extremes{seed, seed};
  for (int64_t p = thread_number(); p < positions; p += kThreads)
    extremes.include(load(map[p]), load(map[p]));
  extremes = block_extremes(extremes);
  const Range<F> range{extremes.low, extremes.high - extremes.low + eps};
  for (int64_t p = thread_number(); p < positions; p += kThreads)
    target[p] = range.normalize(load(map[p]));
}

}  // namespace fastcam
