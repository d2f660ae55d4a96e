// Linear interpolation with half-pixel centres, and which samples bound an enlarged map.
#pragma once

#include <cstdint>

#include "kernels/layout.h"

namespace fastcam {

// A sample lies between source[near] and source[far], a fraction of the way.
template <class F>
struct Sample {
  int64_t near, far;
  F fraction;
};

// 32-bit division where both fit: a GPU takes a tenth of the time for it.
FASTCAM_HOST_DEVICE int64_t quotient(int64_t n, int64_t d) {
  if (((n | d) >> 32) == 0) return static_cast<uint32_t>(n) / static_cast<uint32_t>(d);
  return n / d;
}

// The source coordinate of a sample is (index + 1/2) in / out - 1/2, at least 0: as a fraction over
// 2 out it is exact, so the cell is never off by a rounding.
template <class F>
FASTCAM_HOST_DEVICE Sample<F> sample_at(int64_t index, int64_t in, int64_t out) {
  if (in == out) return {index, index, 0};
  int64_t numerator = (2 * index + 1) * in - out;
  if (numerator < 0) numerator = 0;
  const int64_t cell = quotient(numerator, 2 * out);
  const F fraction = F(numerator - cell * 2 * out) / F(2 * out);
  return {cell, cell + 1 < in ? cell + 1 : in - 1, fraction};
}

// In this form two equal values blend to exactly that value, so a constant map stays constant.
template <class F>
FASTCAM_HOST_DEVICE F blend(const Sample<F>& sample, F near, F far) {
  return near + sample.fraction * (far - near);
}

// Inside one cell interpolation is affine in each coordinate, so over the samples of a cell the extremes
// lie at its first and last sample: two a cell are all that minimum and maximum need to look at.
FASTCAM_HOST_DEVICE int64_t bound_count(int64_t in, int64_t out) {
  return out < 2 * in ? out : 2 * in;
}

FASTCAM_HOST_DEVICE int64_t bound_count(const Size& size, const Size& enlarged) {
  return bound_count(size.depth, enlarged.depth) * bound_count(size.height, enlarged.height) *
         bound_count(size.width, enlarged.width);
}

// The first sample at or behind the source position `cell`
FASTCAM_HOST_DEVICE int64_t first_sample(int64_t cell, int64_t in, int64_t out) {
  const int64_t numerator = (2 * cell + 1) * out - in;
  return cell == 0 || numerator <= 0 ? 0 : quotient(numerator + 2 * in - 1, 2 * in);
}

// The bounding sample number j of `bound_count`
FASTCAM_HOST_DEVICE int64_t bound_sample(int64_t j, int64_t in, int64_t out) {
  if (out < 2 * in) return j;
  return j % 2 == 0 ? first_sample(j / 2, in, out)
                    : (j / 2 == in - 1 ? out : first_sample(j / 2 + 1, in, out)) - 1;
}

// min-max over one map: (value - low) / range, 0 where the range is 0
template <class F>
struct Range {
  F low, range;

  FASTCAM_HOST_DEVICE F normalize(F value) const {
    return range == 0 ? F(0) : (value - low) / range;
  }
};

}  // namespace fastcam
