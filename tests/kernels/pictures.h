// Tensors of pictures, and enlarged maps as double loops say what they are.
#pragma once

#include "testing.h"

#include "kernels/enlarge.cuh"

namespace fastcam {

// (N, K, C, depth, height, width): channels first, channels last, or rows with gaps
template <class T>
struct Pictures {
  VolumeStrides strides;
  Buffer<T> buffer;

  Pictures(
      int64_t images, int64_t classes, int64_t channels, const Size& size, ChannelOrder order,
      bool unaligned)
      : strides(strides_of(classes, channels, size, order)),
        buffer(images * strides.image, unaligned) {
    buffer.fill(T{});
  }

  int64_t offset(int64_t n, int64_t k, int64_t c, int64_t z, int64_t y, int64_t x) const {
    return n * strides.image + k * strides.klass + c * strides.channel + z * strides.depth +
           y * strides.height + x * strides.width;
  }

 private:
  static VolumeStrides strides_of(int64_t k, int64_t c, const Size& s, ChannelOrder order) {
    const int64_t positions = s.positions();
    if (order == ChannelOrder::kPlanar)
      return {k * c * positions, c * positions, positions, s.height * s.width, s.width, 1};
    if (order == ChannelOrder::kInterleaved)
      return {k * c * positions, c * positions, 1, c * s.height * s.width, c * s.width, c};
    const int64_t row = s.width * 2 + 1, plane = s.height * row, volume = s.depth * plane;
    return {k * c * volume, c * volume, volume, plane, row, 2};
  }
};

// Two neighbours and how far between them a sample lies
struct Neighbours {
  int64_t near, far;
  double fraction;
};

// (index + 1/2) in / out - 1/2, at least 0, as an exact fraction over 2 out
inline Neighbours neighbours(int64_t index, int64_t in, int64_t out) {
  const int64_t source = std::max<int64_t>(0, (2 * index + 1) * in - out),
                near = source / (2 * out);
  return {near, std::min(near + 1, in - 1), double(source % (2 * out)) / (2 * out)};
}

// The enlarged map, row after row
inline std::vector<double> enlarge(
    const std::vector<double>& map, const Size& size, const Size& enlarged) {
  std::vector<double> result;
  const auto mix = [](const Neighbours& n, auto value) {
    return value(n.near) * (1 - n.fraction) + value(n.far) * n.fraction;
  };
  for (int64_t z = 0; z < enlarged.depth; ++z) {
    for (int64_t y = 0; y < enlarged.height; ++y) {
      for (int64_t x = 0; x < enlarged.width; ++x) {
        const Neighbours depth = neighbours(z, size.depth, enlarged.depth);
        const Neighbours height = neighbours(y, size.height, enlarged.height);
        const Neighbours width = neighbours(x, size.width, enlarged.width);
        result.push_back(mix(depth, [&](int64_t i) {
          return mix(height, [&](int64_t j) {
            return mix(
                width, [&](int64_t k) { return map[(i * size.height + j) * size.width + k]; });
          });
        }));
      }
    }
  }
  return result;
}

// Small maps (N, K, positions) as partial maps (N, slices, K, positions) of random numbers
template <class F>
struct SmallMaps {
  int64_t images, classes, slices;
  bool rectify, staged;
  Size size;
  std::vector<F> partial;

  SmallMaps(
      int64_t images, int64_t classes, int64_t slices, bool rectify, bool staged, const Size& size)
      : images(images),
        classes(classes),
        slices(slices),
        rectify(rectify),
        staged(staged),
        size(size),
        partial(images * slices * classes * size.positions()) {
    for (F& value : partial) value = static_cast<F>(normal());
  }

  MapSource<F> source() const {
    const auto groups = static_cast<int>(slice_groups(slices, size.positions()));
    return {partial.data(), classes, slices, rectify, staged, groups};
  }
  int64_t shared_bytes() const {
    const int64_t positions = size.positions();
    return staged ? slice_groups(slices, positions) * positions * sizeof(F) : 0;
  }

  std::vector<double> map(int64_t n, int64_t k) const {
    std::vector<double> sums;
    for (int64_t p = 0; p < size.positions(); ++p) {
      double sum = 0;
      for (int64_t slice = 0; slice < slices; ++slice)
        sum += partial[((n * slices + slice) * classes + k) * size.positions() + p];
      sums.push_back(rectify && sum < 0 ? 0 : sum);
    }
    return sums;
  }
};

// What min-max normalization does to a map, and to its rounding
struct Normalization {
  double low = INFINITY, high = -INFINITY, eps, scale;

  Normalization(const std::vector<double>& map, double eps) : eps(eps) {
    for (double value : map) {
      low = std::min(low, value);
      high = std::max(high, value);
    }
    scale = 1 + (high > low ? std::max(std::abs(low), std::abs(high)) / (high - low + eps) : 0);
  }

  double operator()(double value) const {
    return high > low ? (value - low) / (high - low + eps) : 0;
  }
};

}  // namespace fastcam
