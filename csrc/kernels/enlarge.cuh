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
    return (high_product(n, multiplier) + n) >> shift;
  }
};

// A sample lies between source[near] and source[far], a fraction of the way: sample_at with 32 bits
template <class F>
struct Taps {
  int near, far;
  F fraction;
};

// One dimension: what sample_at, bound_count and bound_sample say, without a division
template <class F>
struct Axis {
  int in, out;
  bool small;                // all numbers fit the dividers
  Divider cells, positions;  // by 2 out and 2 in
  F fraction;                // 1 / (2 out)

  Axis(int64_t in, int64_t out)
      : in(static_cast<int>(in)),
        out(static_cast<int>(out)),
        small(2 * in * (out + 1) < INT32_MAX),
        cells(small ? 2 * out : 1),
        positions(small ? 2 * in : 1),
        fraction(F(1) / F(2 * out)) {}

  FASTCAM_HOST_DEVICE Taps<F> sample(int index) const {
    if (in == out) return {index, index, 0};
    if (!small) {
      const Sample<F> found = sample_at<F>(index, in, out);
      return {static_cast<int>(found.near), static_cast<int>(found.far), found.fraction};
    }
    const int first = (2 * index + 1) * in - out, numerator = first < 0 ? 0 : first;
    const int near = static_cast<int>(cells.quotient(numerator));
    const int rest = numerator - near * static_cast<int>(cells.divisor);
    return {near, near + 1 < in ? near + 1 : near, F(rest) * fraction};
  }

  // Number j of `count` samples: of all, or of those that bound cells
  template <bool kBounds>
  FASTCAM_HOST_DEVICE int count() const {
    return kBounds ? static_cast<int>(bound_count(in, out)) : out;
  }
  template <bool kBounds>
  FASTCAM_HOST_DEVICE int index(int j) const {
    if (!kBounds || out < int64_t{2} * in) return j;
    if (!small) return static_cast<int>(bound_sample(j, in, out));
    const int cell = (j + 1) / 2;  // the sample before its first one, or that one
    const int numerator = (2 * cell + 1) * out - in;
    const int first = cell == 0 || numerator <= 0
                          ? 0
                          : static_cast<int>(positions.quotient(numerator + 2 * in - 1));
    return cell == in ? out - 1 : first - j % 2;
  }
};

// The small and the enlarged extents of a kernel's maps
template <class F>
struct Enlargement {
  Axis<F> depth, height, width;

  Enlargement(const Size& size, const Size& enlarged)
      : depth(size.depth, enlarged.depth),
        height(size.height, enlarged.height),
        width(size.width, enlarged.width) {}

  FASTCAM_HOST_DEVICE int64_t map_positions() const {
    return int64_t{depth.in} * height.in * width.in;
  }
  FASTCAM_HOST_DEVICE int64_t positions() const {
    return int64_t{depth.out} * height.out * width.out;
  }
};

// Neighbouring columns of a row, which a thread takes at once
constexpr int kColumns = 4;
struct Span {
  int z, y, x;    // where it begins in the enlarged map
  int64_t first;  // the number of that position
  int count;      // of columns
};

template <class F>
struct EnlargedMap {
  const F* map;
  Enlargement<F> e;

  // f(span, its values) for rows first_row to last_row and packs of kColumns columns, first_pack to
  // last_pack. A thread keeps its columns and goes down the rows: what four small values of a cell come to
  // at its columns is found once a cell. Behind the last column the values are those of the last.
  template <bool kBounds, class Function>
  __device__ void for_spans(
      int first_pack, int last_pack, int first_row, int last_row, const Function& f) const {
    const int packs = last_pack - first_pack, side = packs < kThreads ? packs : kThreads;
    const int at_once = kThreads / side, row_of_thread = thread_number() / side;
    if (row_of_thread >= at_once) return;
    const int heights = e.height.template count<kBounds>();
    const int widths = e.width.template count<kBounds>();
    const int begin = first_row + row_of_thread;
    const bool flat = e.depth.in == 1;
    for (int pack = first_pack + thread_number() - row_of_thread * side; pack < last_pack;
         pack += side) {
      const int x = pack * kColumns;
      Taps<F> columns[kColumns];
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
        columns[j] = e.width.sample(
            e.width.template index<kBounds>(x + j < widths ? x + j : widths - 1));
      Span span{0, begin, x, int64_t{begin} * widths + x,
                widths - x < kColumns ? widths - x : kColumns};
      if (begin >= heights) {
        span.z = begin / heights;
        span.y = begin - span.z * heights;
      }
      Cell cell;
      F values[kColumns];
#pragma unroll 1
      for (int row = begin; row < last_row; row += at_once) {
        const Taps<F> height = e.height.sample(e.height.template index<kBounds>(span.y));
        if (flat) {
          if (height.near != cell.y) cell.enter(*this, 0, 0, height, columns);
          cell.values(0, height, values);
        } else {
          const Taps<F> depth = e.depth.sample(e.depth.template index<kBounds>(span.z));
          if (height.near != cell.y || depth.near != cell.z)
            cell.enter(*this, depth.near, depth.far, height, columns);
          F far[kColumns];
          cell.values(0, height, values);
          cell.values(1, height, far);
#pragma unroll
          for (int j = 0; j < kColumns; ++j)
            values[j] += depth.fraction * (far[j] - values[j]);
        }
        f(span, values);
        span.first += at_once * widths;
        for (span.y += at_once; span.y >= heights; ++span.z) span.y -= heights;
      }
    }
  }

  // Minimum and maximum over the whole enlarged map; each block finds them for itself.
  __device__ Range<F> range(F eps) const {
    constexpr F kInfinity = std::numeric_limits<F>::infinity();
    Extremes<F> extremes{kInfinity, -kInfinity};
    const int packs = (e.width.template count<true>() + kColumns - 1) / kColumns;
    const int rows = e.depth.template count<true>() * e.height.template count<true>();
    for_spans<true>(0, packs, 0, rows, [&](const Span&, const F(&values)[kColumns]) {
#pragma unroll
      for (F value : values) extremes.include(value, value);
    });
    extremes = block_extremes(extremes);
    return {extremes.low, extremes.high - extremes.low + eps};
  }

 private:
  // The small values around a cell, at a thread's columns
  struct Cell {
    int z = -1, y = -1;
    F near[2][kColumns], step[2][kColumns];  // (near and far plane, column): in the near row, to the far

    __device__ void enter(
        const EnlargedMap& map, int near_z, int far_z, const Taps<F>& height,
        const Taps<F> (&columns)[kColumns]) {
      z = near_z;
      y = height.near;
      const Enlargement<F>& e = map.e;
      const F* upper = map.map + (int64_t{near_z} * e.height.in + height.near) * e.width.in;
      const int64_t lower = int64_t{height.far - height.near} * e.width.in;
      const int64_t behind = int64_t{far_z - near_z} * e.height.in * e.width.in;
#pragma unroll
      for (int plane = 0; plane < 2; ++plane) {
        if (plane == 1 && e.depth.in == 1) break;
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const Taps<F>& c = columns[j];
          const F* corner = upper + plane * behind;
          const F first = corner[c.near], second = corner[lower + c.near];
          near[plane][j] = first + c.fraction * (corner[c.far] - first);
          step[plane][j] = second + c.fraction * (corner[lower + c.far] - second) - near[plane][j];
        }
      }
    }

    __device__ void values(int plane, const Taps<F>& height, F (&values)[kColumns]) const {
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
        values[j] = near[plane][j] + height.fraction * step[plane][j];
    }
  };
};

// (value - low) / range within [0, 1]: a sample between two extremes can round past them; NaN stays.
template <class F>
class Normalizer {
 public:
  __device__ explicit Normalizer(const Range<F>& range) : range_(range), scale_(1 / range.range) {
    if (range.range * scale_ < 1) scale_ *= 1 + std::numeric_limits<F>::epsilon();
    // not if the reciprocal overflows or loses digits, or is NaN
    by_scale_ = scale_ >= std::numeric_limits<F>::min() && scale_ <= std::numeric_limits<F>::max();
  }

  __device__ void operator()(F (&values)[kColumns]) const {
    if (by_scale_) {
#pragma unroll
      for (F& value : values) value = (value - range_.low) * scale_;
    } else {
#pragma unroll
      for (F& value : values) value = range_.normalize(value);
    }
#pragma unroll
    for (F& value : values) value = lesser(greater(value, F(0)), F(1));
  }

 private:
  Range<F> range_;
  F scale_;  // the least one by which the range becomes 1
  bool by_scale_;
};

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
    const MapSource<F>& source, const Enlargement<F>& e, unsigned number) {
  const int64_t size = e.map_positions();
  const unsigned image = source.classes == 1 ? number : number / unsigned(source.classes);
  const int64_t klass = number - image * source.classes;
  const F* parts = source.parts + (image * source.slices * source.classes + klass) * size;
  if (!source.staged) return {parts, e};
  // threads in a group share the positions, and groups share the slices
  F* map = reinterpret_cast<F*>(shared_memory());
  const int positions = static_cast<int>(size), slices = static_cast<int>(source.slices);
  const int groups = static_cast<int>(slice_groups(slices, positions));
  for (int i = thread_number(); i < groups * positions; i += kThreads) {
    const int group = groups == 1 ? 0 : i / positions, p = i - group * positions;
    F sum = 0;
#pragma unroll 4
    for (int slice = group; slice < slices; slice += groups)
      sum += parts[slice * source.classes * size + p];
    map[i] = sum;
  }
  __syncthreads();
  for (int p = thread_number(); p < positions; p += kThreads) {
    F sum = map[p];
    for (int group = 1; group < groups; ++group) sum += map[group * positions + p];
    map[p] = source.rectify ? relu(sum) : sum;
  }
  __syncthreads();
  return {map, e};
}

// How the blocks of an enlarged map share it: by rows, and by columns where these are more than the threads
// take at once
struct Shares {
  int rows;                 // of a block
  int blocks;               // of a map
  Divider of_map, beside;   // by blocks, and by those that share a row
  int packs, side;          // of kColumns columns: of the map, of a block

  // At most `most` blocks a map, but for those that share a row
  template <class F>
  Shares(const Enlargement<F>& e, int64_t most)
      : Shares(int64_t{e.depth.out} * e.height.out, (int64_t{e.width.out} + kColumns - 1) / kColumns, most) {}

 private:
  Shares(int64_t all_rows, int64_t all_packs, int64_t most)
      : Shares(parts(all_rows, most), all_rows, all_packs, parts(all_packs, kThreads)) {}
  Shares(int64_t rows, int64_t all_rows, int64_t all_packs, int64_t beside)
      : rows(static_cast<int>(rows)),
        blocks(static_cast<int>(parts(all_rows, rows) * beside)),
        of_map(blocks),
        beside(beside),
        packs(static_cast<int>(all_packs)),
        side(packs < kThreads ? packs : kThreads) {}
  static int64_t parts(int64_t n, int64_t each) { return (n + each - 1) / each; }
};

// What a block takes of its map
struct Share {
  unsigned map;
  int first_pack, last_pack, first_row, last_row;

  template <class F>
  __device__ Share(const Shares& shares, const Enlargement<F>& e, unsigned block)
      : map(shares.of_map.quotient(block)) {
    const unsigned share = block - map * shares.of_map.divisor;
    const unsigned row = shares.beside.quotient(share);
    first_pack = static_cast<int>(share - row * shares.beside.divisor) * shares.side;
    last_pack = first_pack + shares.side < shares.packs ? first_pack + shares.side : shares.packs;
    const int rows = e.depth.out * e.height.out;
    first_row = static_cast<int>(row) * shares.rows;
    last_row = first_row + shares.rows < rows ? first_row + shares.rows : rows;
  }
};

// f(span, its values) for the block's share
template <class F, class Function>
__device__ void for_share(const EnlargedMap<F>& map, const Share& share, const Function& f) {
  map.template for_spans<false>(
      share.first_pack, share.last_pack, share.first_row, share.last_row, f);
}

// Whether kColumns neighbouring elements of every row begin at a multiple of their size
template <class T>
__device__ bool rows_packed(const T* data, int64_t channel_stride, int width) {
  return width % kColumns == 0 && channel_stride % kColumns == 0 &&
         aligned<alignof(Pack<T, kColumns>)>(data);
}

// maps (count, *S) to (count, *enlarged)
template <class F>
__global__ void __launch_bounds__(kThreads) upsample_kernel(
    MapSource<F> source, Enlargement<F> e, Shares shares, bool normalize, F eps, F* result) {
  const Share share(shares, e, blockIdx.x);
  const EnlargedMap<F> map = enlarged_map(source, e, share.map);
  F* target = result + share.map * e.positions();
  const bool packed = rows_packed(target, 0, e.width.out);
  const auto store = [&](const Span& span, const F(&values)[kColumns]) {
    Pack<F, kColumns> pack;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) pack.values[j] = values[j];
    store_pack(packed, target + span.first, span.count, pack);
  };
  if (!normalize) return for_share(map, share, store);
  const Normalizer<F> normalization(map.range(eps));
  for_share(map, share, [&](const Span& span, F(&values)[kColumns]) {
    normalization(values);
    store(span, values);
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

FASTCAM_HOST_DEVICE int64_t offset_at(const VolumeStrides& s, const Span& span) {
  return span.z * s.depth + span.y * s.height + span.x * s.width;
}

// product[n, k, c, x] = normalized enlarged map[n, k, x] * guided[n, k, c, x]. `order` is that of both
// tensors.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) guided_product_kernel(
    MapSource<arithmetic_t<T>> source, const T* guided, Enlargement<arithmetic_t<T>> e,
    Shares shares, int64_t channels, ChannelOrder order, VolumeStrides gs, VolumeStrides ps,
    arithmetic_t<T> eps, T* product) {
  using F = arithmetic_t<T>;
  const Share share(shares, e, blockIdx.x);
  const int64_t image = share.map / source.classes, klass = share.map % source.classes;
  const EnlargedMap<F> map = enlarged_map(source, e, share.map);
  const Normalizer<F> normalization(map.range(eps));
  guided += image * gs.image + klass * gs.klass;
  product += image * ps.image + klass * ps.klass;
  const bool packed = rows_packed(guided, gs.channel, e.width.out) &&
                      rows_packed(product, ps.channel, e.width.out);
  for_share(map, share, [&](const Span& span, F(&heat)[kColumns]) {
    normalization(heat);
    if (order == ChannelOrder::kPlanar) {
      const T* from = guided + span.first;
      T* to = product + span.first;
      for (int c = 0; c < channels; ++c, from += gs.channel, to += ps.channel) {
        Pack<T, kColumns> pack{};
        load_pack(packed, from, span.count, pack);
#pragma unroll
        for (int j = 0; j < kColumns; ++j)
          pack.values[j] = store<T>(heat[j] * load(pack.values[j]));
        store_pack(packed, to, span.count, pack);
      }
    } else if (order == ChannelOrder::kInterleaved) {
      Pack<T, 3 * kColumns> pack{};
      load_pack(guided + 3 * span.first, 3 * span.count, pack);
#pragma unroll
      for (int j = 0; j < 3 * kColumns; ++j)
        pack.values[j] = store<T>(heat[j / 3] * load(pack.values[j]));
      store_pack(product + 3 * span.first, 3 * span.count, pack);
    } else {
      const int64_t from = offset_at(gs, span), to = offset_at(ps, span);
      for (int64_t c = 0; c < channels; ++c) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j)
          if (j < span.count)
            product[to + c * ps.channel + j * ps.width] =
                store<T>(heat[j] * load(guided[from + c * gs.channel + j * gs.width]));
      }
    }
  });
}

}  // namespace fastcam
