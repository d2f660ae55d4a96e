// A small map read as an enlarged one: interpolated where it is needed, its range found from the samples
// that bound its cells, so the enlarged map need not be stored to be normalized.
#pragma once

#include "kernels/block.cuh"
#include "kernels/interpolate.h"
#include "kernels/layout.h"
#include "kernels/scalar.h"

namespace fastcam {

template <class T>
struct EnlargedMap {
  using F = arithmetic_t<T>;
  const T* map;
  Size size, enlarged;

  __device__ F row_value(int64_t z, int64_t y, const Sample<F>& width) const {
    const T* row = map + (z * size.height + y) * size.width;
    return blend(width, load(row[width.near]), load(row[width.far]));
  }

  __device__ F plane_value(int64_t z, const Sample<F>& height, const Sample<F>& width) const {
    return blend(height, row_value(z, height.near, width), row_value(z, height.far, width));
  }

  __device__ F value(int64_t z, int64_t y, int64_t x) const {
    const Sample<F> height = sample_at<F>(y, size.height, enlarged.height);
    const Sample<F> width = sample_at<F>(x, size.width, enlarged.width);
    if (size.depth == 1) return plane_value(0, height, width);
    const Sample<F> depth = sample_at<F>(z, size.depth, enlarged.depth);
    return blend(
        depth, plane_value(depth.near, height, width), plane_value(depth.far, height, width));
  }

  // Minimum and maximum over the whole enlarged map; each block finds them for itself.
  __device__ Range<F> range(F eps) const {
    const int64_t depths = bound_count(size.depth, enlarged.depth);
    const int64_t heights = bound_count(size.height, enlarged.height);
    const int64_t widths = bound_count(size.width, enlarged.width);
    const F seed = value(0, 0, 0);
    Extremes<F> extremes{seed, seed};
    for (int64_t i = thread_number(); i < depths * heights * widths; i += kThreads) {
      const int64_t row = quotient(i, widths), depth = quotient(row, heights);
      const F sample = value(
          bound_sample(depth, size.depth, enlarged.depth),
          bound_sample(row - depth * heights, size.height, enlarged.height),
          bound_sample(i - row * widths, size.width, enlarged.width));
      extremes.include(sample, sample);
    }
    extremes = block_extremes(extremes);
    return {extremes.low, extremes.high - extremes.low + eps};
  }
};

// (value - low) / range within [0, 1]: a sample between two extremes can round past them; NaN stays.
template <class F>
__device__ F normalized(const Range<F>& range, F value) {
  const F share = range.normalize(value);
  return share < 0 ? F(0) : share > 1 ? F(1) : share;
}

// f(z, y, x) for the positions of an enlarged map that this block takes: `share` of `shares`
template <class Function>
__device__ void for_positions(
    const Size& enlarged, int64_t share, int64_t shares, const Function& f) {
  const int64_t positions = enlarged.positions();
  for (int64_t i = share * kThreads + thread_number(); i < positions; i += shares * kThreads) {
    const int64_t row = quotient(i, enlarged.width), z = quotient(row, enlarged.height);
    f(z, row - z * enlarged.height, i - row * enlarged.width);
  }
}

// maps (count, *S) to (count, *enlarged); `shares` blocks a map
template <class T>
__global__ void upsample_kernel(
    const T* maps, Size size, Size enlarged, int64_t shares, bool normalize, arithmetic_t<T> eps,
    arithmetic_t<T>* result) {
  using F = arithmetic_t<T>;
  const int64_t number = blockIdx.x / shares, share = blockIdx.x % shares;
  const EnlargedMap<T> map{maps + number * size.positions(), size, enlarged};
  const Range<F> range = normalize ? map.range(eps) : Range<F>{};
  F* target = result + number * enlarged.positions();
  for_positions(enlarged, share, shares, [&](int64_t z, int64_t y, int64_t x) {
    const F value = map.value(z, y, x);
    target[(z * enlarged.height + y) * enlarged.width + x] =
        normalize ? normalized(range, value) : value;
  });
}

// product[n, k, c, x] = normalized enlarged map[n, k, x] * guided[n, k, c, x]; `shares` blocks a map
template <class T>
__global__ void guided_product_kernel(
    const arithmetic_t<T>* maps, const T* guided, Size size, Size enlarged, int64_t shares,
    int64_t classes, int64_t channels, VolumeStrides gs, VolumeStrides ps, arithmetic_t<T> eps,
    T* product) {
  using F = arithmetic_t<T>;
  const int64_t number = blockIdx.x / shares, share = blockIdx.x % shares;
  const int64_t image = number / classes, klass = number % classes;
  const EnlargedMap<F> map{maps + number * size.positions(), size, enlarged};
  const Range<F> range = map.range(eps);
  const T* source = guided + image * gs.image + klass * gs.klass;
  T* target = product + image * ps.image + klass * ps.klass;
  for_positions(enlarged, share, shares, [&](int64_t z, int64_t y, int64_t x) {
    const F heat = normalized(range, map.value(z, y, x));
    const int64_t from = z * gs.depth + y * gs.height + x * gs.width;
    const int64_t to = z * ps.depth + y * ps.height + x * ps.width;
    for (int64_t c = 0; c < channels; ++c)
      target[to + c * ps.channel] = store<T>(heat * load(source[from + c * gs.channel]));
  });
}

}  // namespace fastcam
