// Min-max over each map, `shares` blocks a map; if there are several, extremes_kernel runs first.
#pragma once

#include "kernels/block.cuh"
#include "kernels/interpolate.h"
#include "kernels/scalar.h"

namespace fastcam {

// The extremes of the values that a block takes of a map: `share` of `shares`, in every thread
template <class T>
__device__ Extremes<arithmetic_t<T>> map_extremes(
    const T* map, int64_t positions, int64_t share, int64_t shares) {
  using F = arithmetic_t<T>;
  const F seed = load(map[0]);
  Extremes<F> extremes{seed, seed};
  for_packs<kVector<T>>(positions, share, shares, [&](int64_t first, int valid) {
    Pack<T, kVector<T>> values;
#pragma unroll
    for (T& value : values.values) value = map[first];
    load_pack(map + first, valid, values);
#pragma unroll
    for (const T& value : values.values) extremes.include(load(value), load(value));
  });
  return block_extremes(extremes);
}

// extremes (count, shares)
template <class T>
__global__ void __launch_bounds__(kThreads) extremes_kernel(
    const T* maps, int64_t positions, int64_t shares, Extremes<arithmetic_t<T>>* extremes) {
  const int64_t number = blockIdx.x / shares, share = blockIdx.x % shares;
  const auto found = map_extremes(maps + number * positions, positions, share, shares);
  if (thread_number() == 0) extremes[blockIdx.x] = found;
}

// extremes: null where a block takes a whole map
template <class T>
__global__ void __launch_bounds__(kThreads) normalize_kernel(
    const T* maps, int64_t positions, int64_t shares, const Extremes<arithmetic_t<T>>* extremes,
    arithmetic_t<T> eps, arithmetic_t<T>* result) {
  using F = arithmetic_t<T>;
  const int64_t number = blockIdx.x / shares, share = blockIdx.x % shares;
  const T* map = maps + number * positions;
  F* target = result + number * positions;
  Extremes<F> whole;
  if (extremes) {
    whole = extremes[number * shares];
    for (int64_t i = 1; i < shares; ++i) {
      const Extremes<F>& other = extremes[number * shares + i];
      whole.include(other.low, other.high);
    }
  } else {
    whole = map_extremes(map, positions, 0, 1);
  }
  const Range<F> range{whole.low, whole.high - whole.low + eps};
  for_packs<kVector<F>>(positions, share, shares, [&](int64_t first, int valid) {
    Pack<F, kVector<F>> values;
#pragma unroll
    for (int j = 0; j < kVector<F>; ++j)
      values.values[j] = j < valid ? range.normalize(load(map[first + j])) : F(0);
    store_pack(target + first, valid, values);
  });
}

}  // namespace fastcam
