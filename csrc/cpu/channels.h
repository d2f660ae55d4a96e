// The two loops of every map: a channel's sums over positions, and a map's sum over channels.
//
// Channels are taken in tiles that stay in the second-level cache, so that activations and gradients come
// from memory once however often a method looks at them. Where the channels are contiguous
// (channels_last, tokens) the inner loop runs over the tile's channels, else over the positions.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "cpu/parallel.h"
#include "kernels/layout.h"
#include "kernels/methods.h"
#include "kernels/scalar.h"

namespace fastcam::cpu {

struct Tile {
  int64_t image, begin, end;  // channels begin to end of one image
};

template <class T>
bool channels_contiguous(const Features<T>& a) {
  return a.strides.channel == 1 && a.strides.position != 1;
}

constexpr int64_t kMaxTile = 256;

// Channels of a tile. Those that are read once are taken in long runs, those that are read again in as
// many as stay in the second-level cache; contiguous channels in whole cache lines.
template <class T>
int64_t tile_channels(const Features<T>& a, int64_t positions, bool read_again) {
  constexpr int64_t kCacheBytes = 256 * 1024, kRun = 128;
  const int64_t unit = channels_contiguous(a) ? 64 / sizeof(T) : 4;
  if (!read_again && channels_contiguous(a)) return kRun;
  const int64_t fitting = kCacheBytes / (std::max<int64_t>(positions, 1) * sizeof(T));
  return std::clamp(fitting / unit * unit, unit, kMaxTile);
}

// Calls loop(s, t) with strides of 1 and 0 known to the compiler.
template <class Loop>
FASTCAM_HOST_DEVICE void with_strides(int64_t s, int64_t t, const Loop& loop) {
  constexpr std::integral_constant<int64_t, 0> zero;
  constexpr std::integral_constant<int64_t, 1> one;
  if (s == 1 && t == 1) {
    loop(one, one);
  } else if (s == 1 && t == 0) {
    loop(one, zero);
  } else {
    loop(s, t);
  }
}

// sums[c] = sum over positions of term(A, g, c), for the channels c of a tile, counted from its first.
// Blocks of positions are added up in double: long sums lose nothing, short ones pay nothing.
template <class T, class F, class Term>
FASTCAM_HOST_DEVICE void sum_positions(
    const Features<T>& a, const Features<T>& g, const Tile& tile, int64_t klass, int64_t positions,
    F* __restrict sums, const Term& term) {
  const int64_t channels = tile.end - tile.begin;
  const T* a_data = a.at(tile.image, 0, tile.begin);
  const T* g_data = g.at(tile.image, klass, tile.begin);
  const Strides &as = a.strides, &gs = g.strides;
  constexpr int64_t kBlock = 256, kRowBlock = 64;

  if (!channels_contiguous(a)) {
    with_strides(as.position, gs.position, [&](auto a_step, auto g_step) {
      for (int64_t c = 0; c < channels; ++c) {
        const T* a_channel = a_data + c * as.channel;
        const T* g_channel = g_data + c * gs.channel;
        double total = 0;
        for (int64_t first = 0; first < positions; first += kBlock) {
          const int64_t last = std::min(first + kBlock, positions);
          F sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t p = first; p < last; ++p)
            sum += term(load(a_channel[p * a_step]), load(g_channel[p * g_step]), c);
          total += sum;
        }
        sums[c] = static_cast<F>(total);
      }
    });
    return;
  }
  double totals[kMaxTile] = {};
  F block[kMaxTile];
  with_strides(as.channel, gs.channel, [&](auto a_step, auto g_step) {
    for (int64_t first = 0; first < positions; first += kRowBlock) {
      const int64_t last = std::min(first + kRowBlock, positions);
      std::fill_n(block, channels, F(0));
      for (int64_t p = first; p < last; ++p) {
        const T* a_row = a_data + p * as.position;
        const T* g_row = g_data + p * gs.position;
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c)
          block[c] += term(load(a_row[c * a_step]), load(g_row[c * g_step]), c);
      }
      for (int64_t c = 0; c < channels; ++c) totals[c] += block[c];
    }
  });
  for (int64_t c = 0; c < channels; ++c) sums[c] = static_cast<F>(totals[c]);
}

// map[p] += sum over the tile's channels of pixel(A, g, c)
template <class T, class F, class Pixel>
FASTCAM_HOST_DEVICE void sum_channels(
    const Features<T>& a, const Features<T>& g, const Tile& tile, int64_t klass, int64_t positions,
    F* __restrict map, const Pixel& pixel) {
  const int64_t channels = tile.end - tile.begin;
  const T* a_data = a.at(tile.image, 0, tile.begin);
  const T* g_data = g.at(tile.image, klass, tile.begin);
  const Strides &as = a.strides, &gs = g.strides;

  if (!channels_contiguous(a)) {
    with_strides(as.position, gs.position, [&](auto a_step, auto g_step) {
      const auto at = [&](int64_t c, int64_t p) {
        return pixel(
            load(a_data[c * as.channel + p * a_step]), load(g_data[c * gs.channel + p * g_step]),
            c);
      };
      int64_t c = 0;
      for (; c + 4 <= channels; c += 4) {
#pragma omp simd
        for (int64_t p = 0; p < positions; ++p)
          map[p] += (at(c, p) + at(c + 1, p)) + (at(c + 2, p) + at(c + 3, p));
      }
      for (; c < channels; ++c) {
#pragma omp simd
        for (int64_t p = 0; p < positions; ++p) map[p] += at(c, p);
      }
    });
    return;
  }
  with_strides(as.channel, gs.channel, [&](auto a_step, auto g_step) {
    for (int64_t p = 0; p < positions; ++p) {
      const T* a_row = a_data + p * as.position;
      const T* g_row = g_data + p * gs.position;
      F sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t c = 0; c < channels; ++c)
        sum += pixel(load(a_row[c * a_step]), load(g_row[c * g_step]), c);
      map[p] += sum;
    }
  });
}

// totals[c] = sum over positions of A
template <class T, class F>
FASTCAM_MULTIVERSION void activation_totals(
    const Features<T>& a, const Tile& tile, int64_t positions, F* totals) {
  sum_positions(a, a, tile, 0, positions, totals, [](F value, F, int64_t) { return value; });
}

// weights[c] of a channel-weight method
template <class T, class F, class Method>
FASTCAM_MULTIVERSION void channel_weights(
    const Features<T>& a, const Features<T>& g, const Tile& tile, int64_t klass, int64_t positions,
    const Method& method, const F* totals, F* weights) {
  sum_positions(a, g, tile, klass, positions, weights, [&](F activation, F gradient, int64_t c) {
    return method.term(activation, gradient, Method::kTermUsesTotal ? totals[c] : F(0));
  });
  for (int64_t c = 0; c < tile.end - tile.begin; ++c)
    weights[c] = method.weight(weights[c], Method::kUsesActivations ? totals[c] : F(0), positions);
}

// map += sum_k w_k A^k over a tile
template <class T, class F>
FASTCAM_MULTIVERSION void add_weighted(
    const Features<T>& a, const Tile& tile, int64_t positions, const F* weights, F* map) {
  sum_channels(a, a, tile, 0, positions, map, [=](F activation, F, int64_t c) {
    return weights[c] * activation;
  });
}

// map += sum_k pixel(A^k, g^k) over a tile
template <class T, class F, class Method>
FASTCAM_MULTIVERSION void add_elementwise(
    const Features<T>& a, const Features<T>& g, const Tile& tile, int64_t klass, int64_t positions,
    const Method& method, F* map) {
  sum_channels(a, g, tile, klass, positions, map, [=](F activation, F gradient, int64_t) {
    return method.pixel(activation, gradient);
  });
}

// map = ReLU(sum of `parts` maps that lie `stride` apart), the parts in order
template <class F>
FASTCAM_MULTIVERSION void fold_maps(
    const F* parts, int64_t count, int64_t stride, int64_t positions, bool rectify, F* map) {
  for (int64_t part = 0; part < count; ++part) {
#pragma omp simd
    for (int64_t p = 0; p < positions; ++p)
      map[p] = part == 0 ? parts[p] : map[p] + parts[part * stride + p];
  }
  if (rectify) {
#pragma omp simd
    for (int64_t p = 0; p < positions; ++p) map[p] = relu(map[p]);
  }
}

// maps[n, k] = ReLU(sum over tiles of what add_tile(tile, k, map) adds), in parallel.
//
// Tasks are (image, block of classes, run of tiles). Few images and classes: the channels are split into
// runs whose partial maps are added in order. How is decided by the shape alone, so the same input gives
// the same bits with any number of threads.
template <class F, class AddTile>
void sum_tiles(
    const Extents& extents, int64_t tile_size, bool rectify, F* maps, const AddTile& add_tile) {
  constexpr int64_t kClassBlock = 8, kTasks = 32;
  const auto [images, classes, channels, positions] = extents;
  const int64_t blocks = (classes + kClassBlock - 1) / kClassBlock;
  const int64_t tiles = std::max<int64_t>(1, (channels + tile_size - 1) / tile_size);
  const int64_t runs = std::clamp<int64_t>(kTasks / (images * blocks), 1, tiles);
  const int64_t map_stride = classes * positions;

  // partial maps (N, runs, K, positions)
  std::vector<F> partial(runs > 1 ? images * runs * map_stride : 0);
  const int64_t work = positions * (channels / runs + 1) * std::min(classes, kClassBlock);
  parallel_tasks(images * blocks * runs, work, [&](int64_t task) {
    const int64_t run = task % runs, block = task / runs % blocks, image = task / (runs * blocks);
    const int64_t first_class = block * kClassBlock;
    const int64_t last_class = std::min(first_class + kClassBlock, classes);
    F* rows =
        runs > 1 ? partial.data() + (image * runs + run) * map_stride : maps + image * map_stride;
    std::fill(rows + first_class * positions, rows + last_class * positions, F(0));
    for (int64_t t = tiles * run / runs; t < tiles * (run + 1) / runs; ++t) {
      const Tile tile{image, t * tile_size, std::min((t + 1) * tile_size, channels)};
      add_tile(tile, first_class, last_class, rows);
    }
  });
  if (runs == 1 && !rectify) return;
  parallel_tasks(images * classes, positions * runs, [&](int64_t task) {
    const int64_t image = task / classes, klass = task % classes;
    F* map = maps + task * positions;
    if (runs == 1) {
      fold_maps(map, 1, 0, positions, rectify, map);
    } else {
      const F* parts = partial.data() + image * runs * map_stride + klass * positions;
      fold_maps(parts, runs, map_stride, positions, rectify, map);
    }
  });
}

}  // namespace fastcam::cpu
