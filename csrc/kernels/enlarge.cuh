// A small map read as an enlarged one: interpolated where it is needed, its range found from the samples
// that bound its cells, so the enlarged map need not be stored to be normalized. A block holds the small
// map in shared memory and takes a share of the enlarged one.
#pragma once

#include "kernels/block.cuh"
#include "kernels/device.cuh"
#include "kernels/interpolate.h"
#include "kernels/layout.h"
#include "kernels/methods.h"
#include "kernels/scalar.h"

namespace fastcam {

// n / d by a multiplication, for n < 2^31: with s = ceil(log2 d), n / d = (n m / 2^32 + n) / 2^s for
// m = floor(2^32 (2^s - d) / d) + 1 (Granlund and Montgomery 1994, section 4). Made on the host.
struct Divider {
  uint32_t divisor, multiplier, shift;

  explicit Divider(int64_t d) : divisor(static_cast<uint32_t>(d)), shift(0) {
    while ((int64_t{1} << shift) < d) ++shift;
    const uint64_t excess = (uint64_t{1} << shift) - divisor;
    multiplier = static_cast<uint32_t>((excess << 32) / divisor + 1);
  }

  FASTCAM_HOST_DEVICE uint32_t quotient(uint32_t n) const {
    return (static_cast<uint32_t>(uint64_t{n} * multiplier >> 32) + n) >> shift;
  }
};

// sample_at for one dimension
template <class F>
struct Axis {
  int64_t in, out;
  bool small;  // all numbers fit the divider
  Divider cells;

  Axis(int64_t in, int64_t out)
      : in(in), out(out), small(2 * in * (out + 1) < INT32_MAX), cells(small ? 2 * out : 1) {}

  FASTCAM_HOST_DEVICE Sample<F> sample(int64_t index) const {
    if (!small) return sample_at<F>(index, in, out);
    if (in == out) return {index, index, 0};
    const int32_t first = static_cast<int32_t>((2 * index + 1) * in - out);
    const uint32_t numerator = first < 0 ? 0 : first, cell = cells.quotient(numerator);
    const F fraction = F(numerator - cell * cells.divisor) / F(cells.divisor);
    return {cell, cell + 1 < in ? cell + 1 : in - 1, fraction};
  }
};

// The small and the enlarged extents of a kernel's maps
template <class F>
struct Enlargement {
  Axis<F> depth, height, width;
  bool small;  // positions fit the dividers
  Divider row, plane;

  Enlargement(const Size& size, const Size& enlarged)
      : depth(size.depth, enlarged.depth),
        height(size.height, enlarged.height),
        width(size.width, enlarged.width),
        small(enlarged.positions() < INT32_MAX),
        row(small ? enlarged.width : 1),
        plane(small ? enlarged.height : 1) {}

  FASTCAM_HOST_DEVICE int64_t map_positions() const { return depth.in * height.in * width.in; }
  FASTCAM_HOST_DEVICE int64_t positions() const { return depth.out * height.out * width.out; }
};

// Coordinates in the enlarged map
struct Position {
  int64_t z, y, x;
};

template <class F>
FASTCAM_HOST_DEVICE Position position_at(const Enlargement<F>& e, int64_t i) {
  if (!e.small) {
    const int64_t row = i / e.width.out, z = row / e.height.out;
    return {z, row - z * e.height.out, i - row * e.width.out};
  }
  const uint32_t row = e.row.quotient(static_cast<uint32_t>(i)), z = e.plane.quotient(row);
  return {z, row - z * e.plane.divisor, static_cast<uint32_t>(i) - row * e.row.divisor};
}

template <class F>
struct EnlargedMap {
  const F* map;
  Enlargement<F> e;

  __device__ F row_value(int64_t z, int64_t y, const Sample<F>& width) const {
    const F* row = map + (z * e.height.in + y) * e.width.in;
    return blend(width, row[width.near], row[width.far]);
  }

  __device__ F plane_value(int64_t z, const Sample<F>& height, const Sample<F>& width) const {
    return blend(height, row_value(z, height.near, width), row_value(z, height.far, width));
  }

  __device__ F
  value(const Sample<F>& depth, const Sample<F>& height, const Sample<F>& width) const {
    if (e.depth.in == 1) return plane_value(0, height, width);
    return blend(
        depth, plane_value(depth.near, height, width), plane_value(depth.far, height, width));
  }

  __device__ F value(const Position& p) const {
    return value(e.depth.sample(p.z), e.height.sample(p.y), e.width.sample(p.x));
  }

  // Minimum and maximum over the whole enlarged map; each block finds them for itself.
  __device__ Range<F> range(F eps) const {
    const int64_t depths = bound_count(e.depth.in, e.depth.out);
    const int64_t heights = bound_count(e.height.in, e.height.out);
    const int64_t widths = bound_count(e.width.in, e.width.out);
    const F seed = value({0, 0, 0});
    Extremes<F> extremes{seed, seed};
    for (int64_t i = thread_number(); i < depths * heights * widths; i += kThreads) {
      const int64_t row = quotient(i, widths), depth = quotient(row, heights);
      const F sample = value(
          {bound_sample(depth, e.depth.in, e.depth.out),
           bound_sample(row - depth * heights, e.height.in, e.height.out),
           bound_sample(i - row * widths, e.width.in, e.width.out)});
      extremes.include(sample, sample);
    }
    extremes = block_extremes(extremes);
    return {extremes.low, extremes.high - extremes.low + eps};
  }
};

// The values of an enlarged map, position after position
template <class F>
class Walk {
 public:
  __device__ Walk(const EnlargedMap<F>& map, int64_t first)
      : map_(map),
        at_(position_at(map.e, first)),
        depth_(map.e.depth.sample(at_.z)),
        height_(map.e.height.sample(at_.y)) {}

  __device__ F next() {
    const F value = map_.value(depth_, height_, map_.e.width.sample(at_.x));
    if (++at_.x == map_.e.width.out) next_row();
    return value;
  }

 private:
  // Behind the last row the last row is walked again: what is read there is not used.
  __device__ void next_row() {
    const Enlargement<F>& e = map_.e;
    at_.x = 0;
    if (++at_.y == e.height.out) {
      at_.y = 0;
      if (at_.z + 1 < e.depth.out) ++at_.z;
      depth_ = e.depth.sample(at_.z);
    }
    height_ = e.height.sample(at_.y);
  }

  const EnlargedMap<F>& map_;
  Position at_;
  Sample<F> depth_, height_;
};

// (value - low) / range within [0, 1]: a sample between two extremes can round past them; NaN stays.
template <class F>
__device__ F normalized(const Range<F>& range, F value) {
  const F share = range.normalize(value);
  return share < 0 ? F(0) : share > 1 ? F(1) : share;
}

// Small maps (N, K, positions) in device memory, or what they are the sums of: (N, slices, K, positions)
template <class F>
struct MapSource {
  const F* parts;
  int64_t classes, slices;
  bool rectify;  // through ReLU when the slices are added up
  bool staged;   // held in shared memory; a map that is too large for it comes as one slice
};

constexpr int64_t kMaxStagedMap = 48 * 1024;  // bytes: what a block may take without asking

FASTCAM_HOST_DEVICE int64_t slice_groups(int64_t slices, int64_t positions) {
  const int64_t groups = thread_groups(positions);
  return slices < groups ? slices : groups;
}

// The map `number` = image * classes + class
template <class F>
__device__ EnlargedMap<F> enlarged_map(
    const MapSource<F>& source, const Enlargement<F>& e, int64_t number) {
  const int64_t positions = e.map_positions();
  const int64_t image = number / source.classes, klass = number % source.classes;
  const F* parts = source.parts + (image * source.slices * source.classes + klass) * positions;
  if (!source.staged) return {parts, e};
  // threads in a group share the positions, and groups share the slices
  F* map = reinterpret_cast<F*>(shared_memory());
  const int64_t groups = slice_groups(source.slices, positions);
  for (int64_t i = thread_number(); i < groups * positions; i += kThreads) {
    const int64_t group = groups == 1 ? 0 : i / positions, p = i - group * positions;
    F sum = 0;
#pragma unroll 8
    for (int64_t slice = group; slice < source.slices; slice += groups)
      sum += parts[slice * source.classes * positions + p];
    map[i] = sum;
  }
  __syncthreads();
  for (int64_t p = thread_number(); p < positions; p += kThreads) {
    F sum = map[p];
    for (int64_t group = 1; group < groups; ++group) sum += map[group * positions + p];
    map[p] = source.rectify ? relu(sum) : sum;
  }
  __syncthreads();
  return {map, e};
}

// maps (count, *S) to (count, *enlarged); `shares` blocks a map
template <class F>
__global__ void __launch_bounds__(kThreads) upsample_kernel(
    MapSource<F> source, Enlargement<F> e, int64_t shares, bool normalize, F eps, F* result) {
  const int64_t number = blockIdx.x / shares, share = blockIdx.x % shares;
  const EnlargedMap<F> map = enlarged_map(source, e, number);
  const Range<F> range = normalize ? map.range(eps) : Range<F>{};
  F* target = result + number * e.positions();
  for_packs<kVector<F>>(e.positions(), share, shares, [&](int64_t first, int count) {
    Pack<F, kVector<F>> pack;
    Walk<F> walk(map, first);
#pragma unroll
    for (F& value : pack.values) {
      value = walk.next();
      if (normalize) value = normalized(range, value);
    }
    store_pack(target + first, count, pack);
  });
}

// How the channels of neighbouring positions lie in memory
enum class ChannelOrder {
  kScattered,    // anyhow
  kPlanar,       // the positions of a channel are contiguous
  kInterleaved,  // the three channels of all positions are contiguous
};

inline ChannelOrder channel_order(const Size& size, const VolumeStrides& s, int64_t channels) {
  const auto dense = [&](int64_t step) {
    return (size.width == 1 || s.width == step) &&
           (size.height == 1 || s.height == size.width * step) &&
           (size.depth == 1 || s.depth == size.height * size.width * step);
  };
  if (dense(1)) return ChannelOrder::kPlanar;
  return channels == 3 && s.channel == 1 && dense(3) ? ChannelOrder::kInterleaved
                                                     : ChannelOrder::kScattered;
}

FASTCAM_HOST_DEVICE int64_t offset_at(const VolumeStrides& s, const Position& p) {
  return p.z * s.depth + p.y * s.height + p.x * s.width;
}

// product[n, k, c, x] = normalized enlarged map[n, k, x] * guided[n, k, c, x]; `shares` blocks a map.
// `order` is that of both tensors.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) guided_product_kernel(
    MapSource<arithmetic_t<T>> source, const T* guided, Enlargement<arithmetic_t<T>> e,
    int64_t shares, int64_t channels, ChannelOrder order, VolumeStrides gs, VolumeStrides ps,
    arithmetic_t<T> eps, T* product) {
  using F = arithmetic_t<T>;
  constexpr int kCount = kVector<T>;
  const int64_t number = blockIdx.x / shares, share = blockIdx.x % shares;
  const int64_t image = number / source.classes, klass = number % source.classes;
  const EnlargedMap<F> map = enlarged_map(source, e, number);
  const Range<F> range = map.range(eps);
  guided += image * gs.image + klass * gs.klass;
  product += image * ps.image + klass * ps.klass;
  for_packs<kCount>(e.positions(), share, shares, [&](int64_t first, int count) {
    F heat[kCount];
    Walk<F> walk(map, first);
#pragma unroll
    for (F& value : heat) value = normalized(range, walk.next());
    if (order == ChannelOrder::kPlanar) {
      for (int64_t c = 0; c < channels; ++c) {
        Pack<T, kCount> pack{};
        load_pack(guided + c * gs.channel + first, count, pack);
#pragma unroll
        for (int j = 0; j < kCount; ++j) pack.values[j] = store<T>(heat[j] * load(pack.values[j]));
        store_pack(product + c * ps.channel + first, count, pack);
      }
    } else if (order == ChannelOrder::kInterleaved) {
      Pack<T, 3 * kCount> pack{};
      load_pack(guided + 3 * first, 3 * count, pack);
#pragma unroll
      for (int j = 0; j < 3 * kCount; ++j)
        pack.values[j] = store<T>(heat[j / 3] * load(pack.values[j]));
      store_pack(product + 3 * first, 3 * count, pack);
    } else {
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        if (j >= count) continue;
        const Position p = position_at(e, first + j);
        const int64_t from = offset_at(gs, p), to = offset_at(ps, p);
        for (int64_t c = 0; c < channels; ++c)
          product[to + c * ps.channel] = store<T>(heat[j] * load(guided[from + c * gs.channel]));
      }
    }
  });
}

}  // namespace fastcam
