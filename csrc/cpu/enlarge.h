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
struct SampleTable {
  std::vector<Sample<F>> samples;
  std::vector<int64_t> bounds;

  SampleTable(int64_t in, int64_t out) {
    for (int64_t i = 0; i < out; ++i) samples.push_back(sample_at<F>(i, in, out));
    for (int64_t j = 0; j < bound_count(in, out); ++j) bounds.push_back(bound_sample(j, in, out));
  }
};

template <class F>
struct SampleTables {
  Size size, enlarged;
  SampleTable<F> depth, height, width;

  SampleTables(const Size& size, const Size& enlarged)
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
class EnlargedRows {
 public:
  EnlargedRows(const SampleTables<F>& tables, const T* map)
      : tables_(tables),
        map_(map),
        width_(tables.enlarged.width),
        rows_(tables.size.depth * tables.size.height * width_),
        widened_(tables.size.depth * tables.size.height) {}

  // The enlarged row (z, y), `width` values
  void row(int64_t z, int64_t y, F* target) {
    const Sample<F>&depth = tables_.depth.samples[z], &height = tables_.height.samples[y];
    if (tables_.size.depth == 1) {
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
    for (int64_t z : tables_.depth.bounds) {
      for (int64_t y : tables_.height.bounds) {
        row(z, y, values.data());
        for (int64_t x : tables_.width.bounds) {
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
    const int64_t row = z * tables_.size.height + y;
    F* widened = &rows_[row * width_];
    if (!widened_[row]) {
      widen_row(map_ + row * tables_.size.width, tables_.width.samples.data(), width_, widened);
      widened_[row] = 1;
    }
    return widened;
  }

  const SampleTables<F>& tables_;
  const T* map_;
  int64_t width_;
  std::vector<F> rows_;  // (depth, height, enlarged width)
  std::vector<uint8_t> widened_;
};

// f(map index, enlarged map, first row, last row) over shares of the rows, in parallel. Rows are numbered
// through all depths: row = z * height + y.
template <class T, class F, class Function>
void for_row_shares(
    const SampleTables<F>& tables, const T* maps, int64_t count, const Function& f) {
  constexpr int64_t kShareElements = 65536;
  const int64_t rows = tables.enlarged.depth * tables.enlarged.height;
  const int64_t elements = rows * tables.enlarged.width;
  const int64_t shares = std::clamp<int64_t>(elements / kShareElements, 1, 16);
  parallel_tasks(count * shares, elements / shares, [&](int64_t task) {
    const int64_t map = task / shares, share = task % shares;
    EnlargedRows<T, F> enlarged(tables, maps + map * tables.size.positions());
    f(map, enlarged, rows * share / shares, rows * (share + 1) / shares);
  });
}

}  // namespace fastcam::cpu
