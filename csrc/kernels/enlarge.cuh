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

// A sample lies between source[near] and source[far], a fraction of the way: sample_at in as few registers
// as it takes
template <class F>
struct alignas(2 * sizeof(F)) Taps {
  using Index = std::conditional_t<sizeof(F) == 8, int64_t, int32_t>;
  Index cell;  // 2 near, and 1 if far is the next one
  F fraction;

  FASTCAM_HOST_DEVICE static Taps between(int near, int far, F fraction) {
    return {Index{2} * near + (far > near ? 1 : 0), fraction};
  }
  FASTCAM_HOST_DEVICE int near() const { return static_cast<int>(cell >> 1); }
  FASTCAM_HOST_DEVICE int far() const { return near() + static_cast<int>(cell & 1); }
};

// n / d for numbers beyond the divider: by the reciprocal, which is off by a little
FASTCAM_HOST_DEVICE int64_t long_quotient(int64_t n, int64_t d, double reciprocal) {
  auto result = static_cast<int64_t>(static_cast<double>(n) * reciprocal);
  while (result * d > n) --result;
  while ((result + 1) * d <= n) ++result;
  return result;
}

// One dimension: what sample_at, bound_count and bound_sample say. A division would take a GPU long, and
// the registers of a call.
template <class F>
struct Sampler {
  int in, out;
  bool small;                // all numbers fit the dividers
  Divider cells, positions;  // by 2 out and 2 in
  double cell, position;     // 1 / (2 out) and 1 / (2 in)

  Sampler(int64_t in, int64_t out)
      : in(static_cast<int>(in)),
        out(static_cast<int>(out)),
        small(2 * in * (out + 1) < INT32_MAX),
        cells(small ? 2 * out : 1),
        positions(small ? 2 * in : 1),
        cell(1.0 / (2 * out)),
        position(1.0 / (2 * in)) {}

  FASTCAM_HOST_DEVICE Taps<F> sample(int index) const {
    if (in == out) return Taps<F>::between(index, index, 0);
    if (small) {
      const int numerator = not_negative((2 * index + 1) * in - out);
      const int near = static_cast<int>(cells.quotient(numerator));
      return taps(near, numerator - near * static_cast<int>(cells.divisor));
    }
    const int64_t numerator = not_negative((2 * int64_t{index} + 1) * in - out);
    const int64_t near = long_quotient(numerator, 2 * int64_t{out}, cell);
    return taps(static_cast<int>(near), numerator - near * 2 * out);
  }

  // Number j of `count` samples: of all, or of those that bound cells
  template <bool kBounds>
  FASTCAM_HOST_DEVICE int count() const {
    return kBounds ? static_cast<int>(bound_count(in, out)) : out;
  }
  template <bool kBounds>
  FASTCAM_HOST_DEVICE int index(int j) const {
    if (!kBounds || out < int64_t{2} * in) return j;
    const int of_cell = (j + 1) / 2;  // the sample before its first one, or that one
    return of_cell == in ? out - 1 : first_sample_of(of_cell) - j % 2;
  }

 private:
  template <class I>
  FASTCAM_HOST_DEVICE static I not_negative(I value) {
    return value < 0 ? 0 : value;
  }
  template <class I>
  FASTCAM_HOST_DEVICE Taps<F> taps(int near, I rest) const {
    return Taps<F>::between(near, near + 1 < in ? near + 1 : near, F(rest) * F(cell));
  }
  FASTCAM_HOST_DEVICE int first_sample_of(int cell) const {
    if (small) {
      const int numerator = (2 * cell + 1) * out - in;
      if (cell == 0 || numerator <= 0) return 0;
      return static_cast<int>(positions.quotient(numerator + 2 * in - 1));
    }
    const int64_t numerator = (2 * int64_t{cell} + 1) * out - in, width = 2 * int64_t{in};
    if (cell == 0 || numerator <= 0) return 0;
    return static_cast<int>(long_quotient(numerator + width - 1, width, position));
  }
};

// Neighbouring columns of a row, which a thread takes at once
constexpr int kColumns = 4;

// How a block's threads go over columns, kThreads of them at a time: side by side, and in several rows at
// once
struct Walk {
  int columns, rows_at_once;
  Divider side;  // by the packs of kColumns columns that are taken side by side

  explicit Walk(int64_t columns)
      : columns(static_cast<int>(columns)),
        rows_at_once(kThreads / packs(columns)),
        side(packs(columns)) {}

 private:
  static int packs(int64_t columns) {
    const int64_t most = columns < kThreads ? columns : kThreads;
    return static_cast<int>((most + kColumns - 1) / kColumns);
  }
};

// The small and the enlarged extents of a kernel's maps
template <class F>
struct Enlargement {
  Sampler<F> depth, height, width;
  Walk all, bounds;  // the columns, and those that bound cells

  Enlargement(const Size& size, const Size& enlarged)
      : depth(size.depth, enlarged.depth),
        height(size.height, enlarged.height),
        width(size.width, enlarged.width),
        all(enlarged.width),
        bounds(bound_count(size.width, enlarged.width)) {}

  FASTCAM_HOST_DEVICE int64_t map_positions() const {
    return int64_t{depth.in} * height.in * width.in;
  }
  FASTCAM_HOST_DEVICE int64_t positions() const {
    return int64_t{depth.out} * height.out * width.out;
  }
};

// Columns and rows of an enlarged map; a row is one of all planes
struct Area {
  int first_column, last_column, first_row, last_row;
};

struct Span {
  int row, column;  // where it begins in the enlarged map
  int first;        // and the number of that position, from the area's first row on
  int count;        // of columns
};

// Tags of the taps in shared memory, the same for every function that they are used in
struct OfColumns;
struct OfRows;
struct OfPlanes;

template <class F>
struct EnlargedMap {
  const F* map;
  bool staged;  // at the beginning of shared memory, which the compiler has to know for fast reads
  const Enlargement<F>& e;

  // f(span, its values) for the spans of a area, or (kBounds) of the samples that bound cells. What lies
  // beyond the last column has its values. In chunks of kThreads columns and rows, whose taps each thread
  // finds for one of them.
  template <bool kBounds, class Function>
  __device__ void for_spans(const Area& area, const Function& f) const {
    auto& columns = static_memory<OfColumns, Taps<F>, kThreads>();
    auto& rows = static_memory<OfRows, Taps<F>, kThreads>();
    auto& planes = static_memory<OfPlanes, Taps<F>, kThreads>();
    const int heights = e.height.template count<kBounds>(), t = thread_number();
    const Walk& walk = kBounds ? e.bounds : e.all;
    for (int column = area.first_column; column < area.last_column; column += kThreads) {
      for (int row = area.first_row; row < area.last_row; row += kThreads) {
        const int x = column + t < area.last_column ? column + t : area.last_column - 1;
        columns[t] = e.width.sample(e.width.template index<kBounds>(x));
        if (row + t < area.last_row) {
          const int z = row + t < heights ? 0 : (row + t) / heights, y = row + t - z * heights;
          rows[t] = e.height.sample(e.height.template index<kBounds>(y));
          planes[t] = e.depth.sample(e.depth.template index<kBounds>(z));
        }
        __syncthreads();
        const Area chunk{
            column, least(column + kThreads, area.last_column), row,
            least(row + kThreads, area.last_row)};
        const int rows_before = row - area.first_row;
        if (staged && e.depth.in == 1) {
          walk_plane(walk, chunk, rows_before, columns, rows, f);
        } else {
          walk_planes(walk, chunk, rows_before, columns, rows, planes, f);
        }
        __syncthreads();
      }
    }
  }

  // Minimum and maximum over the whole enlarged map; each block finds them for itself.
  __device__ Range<F> range(F eps) const {
    constexpr F kInfinity = std::numeric_limits<F>::infinity();
    Extremes<F> extremes{kInfinity, -kInfinity};
    const int rows = e.depth.template count<true>() * e.height.template count<true>();
    const Area all{0, e.bounds.columns, 0, rows};
    for_spans<true>(all, [&](const Span&, const F(&values)[kColumns]) {
#pragma unroll
      for (F value : values) extremes.include(value, value);
    });
    extremes = block_extremes(extremes);
    return {extremes.low, extremes.high - extremes.low + eps};
  }

 private:
  __device__ static int least(int a, int b) { return a < b ? a : b; }

  // What a thread takes of a chunk: kColumns columns, and of every rows_at_once rows one
  struct Strip {
    int row, column, left;  // the first ones, of the chunk; how many columns there are
    Taps<F> taps[kColumns];
    Span span;

    __device__ Strip(const Walk& walk, const Area& chunk, int rows_before, const Taps<F>* columns)
        : row(static_cast<int>(walk.side.quotient(thread_number()))),
          column((thread_number() - row * static_cast<int>(walk.side.divisor)) * kColumns) {
      left = row < walk.rows_at_once ? chunk.last_column - chunk.first_column - column : 0;
      if (left <= 0) return;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) taps[j] = columns[column + j];
      span = {
          chunk.first_row + row, chunk.first_column + column,
          (rows_before + row) * walk.columns + chunk.first_column + column, least(left, kColumns)};
    }

    __device__ void next_row(const Walk& walk) {
      row += walk.rows_at_once;
      span.row += walk.rows_at_once;
      span.first += walk.rows_at_once * walk.columns;
    }
  };

  // What the four small values of a cell come to at a thread's columns: found once a cell
  struct Cell {
    F near[kColumns], difference[kColumns];  // in the near row, and from there to the far one

    __device__ void enter(const F* near_row, const F* far_row, const Taps<F> (&taps)[kColumns]) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const Taps<F>& t = taps[j];
        const F first = near_row[t.near()], second = far_row[t.near()];
        near[j] = first + t.fraction * (near_row[t.far()] - first);
        difference[j] = second + t.fraction * (far_row[t.far()] - second) - near[j];
      }
    }
    __device__ F value(int j, const Taps<F>& height) const {
      return near[j] + height.fraction * difference[j];
    }
  };

  // Of a plane that is staged: the compiler knows that it reads shared memory.
  template <class Function>
  __device__ void walk_plane(
      const Walk& walk, const Area& chunk, int rows_before, const Taps<F>* columns,
      const Taps<F>* rows, const Function& f) const {
    const F* staged_map = reinterpret_cast<const F*>(shared_memory());
    Strip strip(walk, chunk, rows_before, columns);
    if (strip.left <= 0) return;
    Cell cell;
    int y = -1;
    F values[kColumns];
#pragma unroll 1
    for (; strip.row < chunk.last_row - chunk.first_row; strip.next_row(walk)) {
      const Taps<F> height = rows[strip.row];
      if (height.near() != y) {
        y = height.near();
        cell.enter(staged_map + y * e.width.in, staged_map + height.far() * e.width.in, strip.taps);
      }
#pragma unroll
      for (int j = 0; j < kColumns; ++j) values[j] = cell.value(j, height);
      f(strip.span, values);
    }
  }

  // Of planes, or of one that is not staged: a value at a time, as together they would take too many
  // registers. Each pushes those before it on.
  template <class Function>
  __device__ void walk_planes(
      const Walk& walk, const Area& chunk, int rows_before, const Taps<F>* columns,
      const Taps<F>* rows, const Taps<F>* planes, const Function& f) const {
    Strip strip(walk, chunk, rows_before, columns);
    if (strip.left <= 0) return;
    F values[kColumns];
#pragma unroll 1
    for (; strip.row < chunk.last_row - chunk.first_row; strip.next_row(walk)) {
      const Taps<F> height = rows[strip.row], depth = planes[strip.row];
      const F* near = map + int64_t{depth.near()} * e.height.in * e.width.in;
      const int64_t apart = int64_t{depth.far() - depth.near()} * e.height.in * e.width.in;
#pragma unroll 1
      for (int j = 0; j < kColumns; ++j) {
        const Taps<F> width = columns[strip.column + j];
        F latest = value(near, height, width);
        if (apart > 0) latest += depth.fraction * (value(near + apart, height, width) - latest);
#pragma unroll
        for (int i = 0; i + 1 < kColumns; ++i) values[i] = values[i + 1];
        values[kColumns - 1] = latest;
      }
      f(strip.span, values);
    }
  }

  __device__ F value(const F* plane, const Taps<F>& height, const Taps<F>& width) const {
    const F *near = plane + int64_t{height.near()} * e.width.in,
            *far = plane + int64_t{height.far()} * e.width.in;
    const F first = near[width.near()] + width.fraction * (near[width.far()] - near[width.near()]);
    const F second = far[width.near()] + width.fraction * (far[width.far()] - far[width.near()]);
    return first + height.fraction * (second - first);
  }
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
      for (F& value : values) value = saturated((value - range_.low) * scale_);
    } else {
#pragma unroll
      for (F& value : values) value = lesser(greater(range_.normalize(value), F(0)), F(1));
    }
  }

 private:
  Range<F> range_;
  F scale_;  // the least one by which the range becomes 1
  bool by_scale_;
};

// Small maps in device memory, as partial maps (N, slices, K, positions), of which there may be one slice
template <class F>
struct MapSource {
  const F* partial;
  int64_t classes, slices;
  bool rectify;  // through ReLU when the slices are folded
  bool staged;   // held in shared memory; a map that is too large for it comes as one slice
  int groups;    // of threads, which share the slices
};

constexpr int64_t kMaxStagedMap = 48 * 1024;  // bytes: what a block may take without asking

FASTCAM_HOST_DEVICE int64_t slice_groups(int64_t slices, int64_t positions) {
  const int64_t groups = thread_groups(positions);
  return slices < groups ? slices : groups;
}

// The small map `number` = image * classes + class, in shared memory if it is staged
template <class F>
__device__ const F* small_map(
    const MapSource<F>& source, const Enlargement<F>& e, unsigned number) {
  const int64_t size = e.map_positions();
  const unsigned image = source.classes == 1 ? number : number / unsigned(source.classes);
  const int64_t klass = number - image * source.classes;
  const F* partial = source.partial + (image * source.slices * source.classes + klass) * size;
  if (!source.staged) return partial;
  // groups of threads share the slices
  F* map = reinterpret_cast<F*>(shared_memory());
  const int positions = static_cast<int>(size), slices = static_cast<int>(source.slices);
  const int groups = source.groups;
  for (int i = thread_number(); i < groups * positions; i += kThreads) {
    const int group = groups == 1 ? 0 : i / positions, p = i - group * positions;
    F sum = 0;
#pragma unroll 4
    for (int slice = group; slice < slices; slice += groups)
      sum += partial[slice * source.classes * size + p];
    map[i] = sum;
  }
  __syncthreads();
  for (int p = thread_number(); p < positions; p += kThreads) {
    F sum = map[p];
    for (int group = 1; group < groups; ++group) sum += map[group * positions + p];
    map[p] = source.rectify ? relu(sum) : sum;
  }
  __syncthreads();
  return map;
}

// How the blocks of an enlarged map share it: by rows, and by columns where these are more than the threads
struct Shares {
  int rows;                // of a block
  int blocks;              // of a map
  Divider of_map, beside;  // by blocks, and by those that share a row

  // At most `most` blocks a map, but for those that share a row
  template <class F>
  Shares(const Enlargement<F>& e, int64_t most)
      : Shares(int64_t{e.depth.out} * e.height.out, ceil_div(e.width.out, kThreads), most) {}

 private:
  Shares(int64_t all_rows, int64_t beside, int64_t most)
      : rows(static_cast<int>(ceil_div(all_rows, most))),
        blocks(static_cast<int>(ceil_div(all_rows, rows) * beside)),
        of_map(blocks),
        beside(beside) {}
};

// What a block takes of its map
struct Share {
  unsigned map;
  Area area;
  int64_t first;  // the number of the first position of its first row

  template <class F>
  __device__ Share(const Shares& shares, const Enlargement<F>& e, unsigned block)
      : map(shares.of_map.quotient(block)) {
    const int share = static_cast<int>(block - map * shares.of_map.divisor);
    const int row = static_cast<int>(shares.beside.quotient(share)) * shares.rows;
    const int column = static_cast<int>(share % static_cast<int>(shares.beside.divisor)) * kThreads;
    const int rows = e.depth.out * e.height.out, behind = row + shares.rows;
    area = {
        column, column + kThreads < e.width.out ? column + kThreads : e.width.out, row,
        behind < rows ? behind : rows};
    first = int64_t{row} * e.width.out;
  }
};

// Whether packs of kColumns columns are aligned in every row and channel
template <class T>
__device__ bool rows_packed(const T* data, int64_t channel_stride, int width) {
  constexpr int kBytes = alignof(Pack<T, kColumns>);
  return width * sizeof(T) % kBytes == 0 && channel_stride * sizeof(T) % kBytes == 0 &&
         aligned<kBytes>(data);
}

// maps (count, *S) to (count, *enlarged)
template <class F>
__global__ void __launch_bounds__(kThreads, 2) upsample_kernel(
    MapSource<F> source, const __grid_constant__ Enlargement<F> e, Shares shares, bool normalize,
    F eps, F* result) {
  const Share share(shares, e, blockIdx.x);
  const EnlargedMap<F> map{small_map(source, e, share.map), source.staged, e};
  F* target = result + share.map * e.positions() + share.first;
  const bool packed = rows_packed(target, 0, e.width.out);
  const Normalizer<F> normalizer(normalize ? map.range(eps) : Range<F>{});
  map.template for_spans<false>(share.area, [&](const Span& span, F(&values)[kColumns]) {
    if (normalize) normalizer(values);
    Pack<F, kColumns> pack;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) pack.values[j] = values[j];
    store_pack(packed && span.count == kColumns, target + span.first, span.count, pack);
  });
}

// How the channels of neighbouring positions lie in memory
enum class ChannelOrder {
  kScattered,    // anyhow
  kPlanar,       // the positions of a channel are contiguous
  kInterleaved,  // the three channels of all positions are contiguous
};

inline ChannelOrder channel_order(const Size& size, const VolumeStrides& s, int64_t channels) {
  const auto dense = [&](int64_t stride) {
    return (size.width == 1 || s.width == stride) &&
           (size.height == 1 || s.height == size.width * stride) &&
           (size.depth == 1 || s.depth == size.height * size.width * stride);
  };
  if (dense(1)) return ChannelOrder::kPlanar;
  return channels == 3 && s.channel == 1 && dense(3) ? ChannelOrder::kInterleaved
                                                     : ChannelOrder::kScattered;
}

template <class F>
__device__ int64_t offset_at(const VolumeStrides& s, const Enlargement<F>& e, const Span& span) {
  const int z = span.row / e.height.out, y = span.row - z * e.height.out;
  return z * s.depth + y * s.height + span.column * s.width;
}

// product[n, k, c, x] = normalized enlarged map[n, k, x] * guided[n, k, c, x]. `order` is that of both
// tensors.
template <class T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2) guided_product_kernel(
    MapSource<arithmetic_t<T>> source, const T* guided,
    const __grid_constant__ Enlargement<arithmetic_t<T>> e, Shares shares, int64_t channels,
    ChannelOrder order, VolumeStrides gs, VolumeStrides ps, arithmetic_t<T> eps, T* product) {
  using F = arithmetic_t<T>;
  const Share share(shares, e, blockIdx.x);
  const int64_t image = share.map / source.classes, klass = share.map % source.classes;
  const EnlargedMap<F> map{small_map(source, e, share.map), source.staged, e};
  const Normalizer<F> normalizer(map.range(eps));
  guided += image * gs.image + klass * gs.klass;
  product += image * ps.image + klass * ps.klass;
  const bool planar = order == ChannelOrder::kPlanar;
  const bool packed = rows_packed(guided, planar ? gs.channel : 0, e.width.out) &&
                      rows_packed(product, planar ? ps.channel : 0, e.width.out);
  map.template for_spans<false>(share.area, [&](const Span& span, F(&heat)[kColumns]) {
    normalizer(heat);
    const bool whole = packed && span.count == kColumns;
    if (planar) {
      const T* from = guided + share.first + span.first;
      T* to = product + share.first + span.first;
#pragma unroll 1
      for (int c = 0; c < channels; ++c, from += gs.channel, to += ps.channel) {
        Pack<T, kColumns> pack{};
        load_pack(whole, from, span.count, pack);
#pragma unroll
        for (int j = 0; j < kColumns; ++j)
          pack.values[j] = store<T>(heat[j] * load(pack.values[j]));
        store_pack(whole, to, span.count, pack);
      }
    } else if (order == ChannelOrder::kInterleaved) {
      const int64_t first = 3 * (share.first + span.first);
#pragma unroll
      for (int i = 0; i < 3 * kColumns; i += kColumns) {
        Pack<T, kColumns> pack{};
        load_pack(whole, guided + first + i, 3 * span.count - i, pack);
#pragma unroll
        for (int j = 0; j < kColumns; ++j)
          pack.values[j] = store<T>(heat[(i + j) / 3] * load(pack.values[j]));
        store_pack(whole, product + first + i, 3 * span.count - i, pack);
      }
    } else {
      const int64_t from = offset_at(gs, e, span), to = offset_at(ps, e, span);
#pragma unroll 1
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
