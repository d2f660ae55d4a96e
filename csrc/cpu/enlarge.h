// A map enlarged by linear interpolation, row by row, and the range of its values.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "cpu/parallel.h"
#include "kernels/interpolate.h"
#include "kernels/layout.h"
#include "kernels/scalar.h"

namespace fastcam::cpu {

// The samples along one dimension, and those of them that bound the cells.
template <class F>
struct Axis {
  std::vector<Sample<F>> samples;
  std::vector<int64_t> bounds;

  Axis(int64_t in, int64_t out) {
    for (int64_t i = 0; i < out; ++i) samples.push_back(sample_at<F>(i, in, out));
    for (int64_t j = 0; j < bound_count(in, out); ++j) bounds.push_back(bound_sample(j, in, out));
  }
};

template <class F>
struct Axes {
  Size size, enlarged;
  Axis<F> depth, height, width;

  Axes(const Size& size, const Size& enlarged)
      : size(size),
        enlarged(enlarged),
        depth(size.depth, enlarged.depth),
        height(size.height, enlarged.height),
        width(size.width, enlarged.width) {}
};

// target[x] = the blend of source at sample x
template <class T, class F>
FASTCAM_MULTIVERSION void widen_row(
    const T* source, const Sample<F>* samples, int64_t width, F* __restrict target) {
  for (int64_t x = 0; x < width; ++x) {
    const Sample<F>& sample = samples[x];
    target[x] = blend(sample, load(source[sample.near]), load(source[sample.far]));
  }
}

// target = the blend of two rows
template <class F>
FASTCAM_MULTIVERSION void blend_rows(
    const Sample<F>& sample, const F* near, const F* far, int64_t width, F* __restrict target) {
#pragma omp simd
  for (int64_t x = 0; x < width; ++x) target[x] = blend(sample, near[x], far[x]);
}

// target = the blend along the depth of the blends along the height of two pairs of rows
template <class F>
FASTCAM_MULTIVERSION void blend_row_pairs(
    const Sample<F>& depth, const Sample<F>& height, const F* const (&rows)[4], int64_t width,
    F* __restrict target) {
  const F *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3];
#pragma omp simd
  for (int64_t x = 0; x < width; ++x)
    target[x] = blend(depth, blend(height, a[x], b[x]), blend(height, c[x], d[x]));
}

template <class F>
FASTCAM_MULTIVERSION void normalize_row(const Range<F>& range, int64_t width, F* __restrict row) {
  if (range.range == 0) {
    std::fill_n(row, width, F(0));
    return;
  }
#pragma omp simd
  for (int64_t x = 0; x < width; ++x) {
    const F value = (row[x] - range.low) / range.range;
    // a sample between two extremes can round past them; NaN is neither below nor above
    row[x] = value < 0 ? F(0) : value > 1 ? F(1) : value;
  }
}

// One map: rows are blended as they are asked for, from rows that are widened when first needed.
template <class T, class F>
class EnlargedMap {
 public:
  EnlargedMap(const Axes<F>& axes, const T* map)
      : axes_(axes),
        map_(map),
        width_(axes.enlarged.width),
        rows_(axes.size.depth * axes.size.height * width_),
        widened_(axes.size.depth * axes.size.height) {}

  // The enlarged row (z, y), `width` values
  void row(int64_t z, int64_t y, F* target) {
    const Sample<F>&depth = axes_.depth.samples[z], &height = axes_.height.samples[y];
    if (axes_.size.depth == 1) {
      blend_rows(height, at(0, height.near), at(0, height.far), width_, target);
    } else {
      const F* const rows[] = {
          at(depth.near, height.near), at(depth.near, height.far), at(depth.far, height.near),
          at(depth.far, height.far)};
      blend_row_pairs(depth, height, rows, width_, target);
    }
  }

  // Minimum and maximum over the whole enlarged map; NaN where a value is NaN.
  Range<F> range(F eps) {
    std::vector<F> values(width_);
    row(0, 0, values.data());
    F low = values[0], high = values[0];
    bool nan = false;
    for (int64_t z : axes_.depth.bounds) {
      for (int64_t y : axes_.height.bounds) {
        row(z, y, values.data());
        for (int64_t x : axes_.width.bounds) {
          const F value = values[x];
          low = value < low ? value : low;
          high = value > high ? value : high;
          nan |= value != value;
        }
      }
    }
    if (nan) low = high = std::numeric_limits<F>::quiet_NaN();
    return {low, high - low + eps};
  }

 private:
  const F* at(int64_t z, int64_t y) {
    const int64_t row = z * axes_.size.height + y;
    F* widened = &rows_[row * width_];
    if (!widened_[row]) {
      widen_row(map_ + row * axes_.size.width, axes_.width.samples.data(), width_, widened);
      widened_[row] = 1;
    }
    return widened;
  }

  const Axes<F>& axes_;
  const T* map_;
  int64_t width_;
  std::vector<F> rows_;  // (depth, height, enlarged width)
  std::vector<uint8_t> widened_;
};

// f(map index, enlarged map, first row, last row) over bands of rows, in parallel. Rows are numbered
// through all depths: row = z * height + y.
template <class T, class F, class Function>
void for_row_bands(const Axes<F>& axes, const T* maps, int64_t count, const Function& f) {
  constexpr int64_t kBandElements = 65536;
  const int64_t rows = axes.enlarged.depth * axes.enlarged.height;
  const int64_t elements = rows * axes.enlarged.width;
  const int64_t bands = std::clamp<int64_t>(elements / kBandElements, 1, 16);
  parallel_tasks(count * bands, elements / bands, [&](int64_t task) {
    const int64_t map = task / bands, band = task % bands;
    EnlargedMap<T, F> enlarged(axes, maps + map * axes.size.positions());
    f(map, enlarged, rows * band / bands, rows * (band + 1) / bands);
  });
}

}  // namespace fastcam::cpu
