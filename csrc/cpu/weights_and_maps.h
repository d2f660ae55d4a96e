// Weights and maps of all images and classes: the loops of channels.h for the layout of the activations, in
// parallel.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "cpu/channels.h"
#include "cpu/parallel.h"
#include "kernels/layout.h"
#include "kernels/methods.h"

namespace fastcam::cpu {

// f(image), the images in parallel where they are many, else each in parallel
template <class Function>
void for_images(int64_t images, int64_t elements, const Function& f) {
  constexpr int64_t kMany = 8;
  if (images >= kMany) {
    parallel_tasks(images, elements, f);
  } else {
    for (int64_t image = 0; image < images; ++image) f(image);
  }
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

constexpr int64_t kClassBlock = 8;

// maps[n, k] = ReLU(sum over tiles of what add_tile(tile, first, last, maps of n) adds to those of classes
// first to last), in parallel.
//
// Tasks are (image, block of classes, run of tiles). Few images and classes: the channels are split into
// runs whose partial maps are added in order. How is decided by the shape alone, so the same input gives
// the same bits with any number of threads.
template <class F, class AddTile>
void sum_tiles(
    const Extents& extents, int64_t tile_size, bool rectify, F* maps, const AddTile& add_tile) {
  constexpr int64_t kTasks = 16, kRunChannels = 16;
  const auto [images, classes, channels, positions] = extents;
  const int64_t blocks = (classes + kClassBlock - 1) / kClassBlock;
  const int64_t tiles = std::max<int64_t>(1, (channels + tile_size - 1) / tile_size);
  const int64_t most = std::clamp<int64_t>(channels / kRunChannels, 1, tiles);
  const int64_t runs = std::clamp<int64_t>(kTasks / (images * blocks), 1, most);
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

// weights[k - first, c] of a channel-weight method over rows, for the classes k from first to last of one image
template <class T, class F, class Method>
void row_class_weights(
    const Features<T>& a, const Features<T>& g, const Extents& extents, int64_t image,
    int64_t first, int64_t last, const Method& method, F* weights) {
  const int64_t channels = extents.channels, positions = extents.positions;
  std::vector<F> totals(Method::kUsesActivations ? channels : 0);
  if constexpr (Method::kUsesActivations)
    row_totals(a, image, channels, positions, method, totals.data());
  for (int64_t k = first; k < last; ++k)
    row_weights(
        a, g, image, k, channels, positions, method, totals.data(),
        weights + (k - first) * channels);
}

// The same over planes, for the channels of a tile; the weights of two classes lie `stride` apart.
template <class T, class F, class Method>
void plane_class_weights(
    const Features<T>& a, const Features<T>& g, const Extents& extents, const Tile& tile,
    int64_t first, int64_t last, const Method& method, F* weights, int64_t stride) {
  F totals[kMaxTile];
  if constexpr (Method::kUsesActivations) plane_totals(a, tile, extents.positions, method, totals);
  for (int64_t k = first; k < last; ++k)
    plane_weights(a, g, tile, k, extents.positions, method, totals, weights + (k - first) * stride);
}

// Weights (N, K, C) of a channel-weight method
template <class T, class F, class Method>
void find_weights(
    const Features<T>& a, const Features<T>& g, const Extents& extents, const Method& method,
    F* weights) {
  const auto [images, classes, channels, positions] = extents;
  // a task takes all classes that share their channels' totals
  const int64_t together = Method::kUsesActivations ? classes : 1, blocks = classes / together;
  const int64_t passes = together + (Method::kUsesActivations ? 1 : 0);
  if (in_rows(a)) {
    for_images(
        images * blocks, channels * positions * passes, [&, channels = channels](int64_t task) {
          const int64_t first = task % blocks * together;
          row_class_weights(
              a, g, extents, task / blocks, first, first + together, method,
              weights + task * together * channels);
        });
    return;
  }
  const int64_t size = tile_channels<T>(positions), tiles = (channels + size - 1) / size;
  parallel_tasks(
      images * blocks * tiles, size * positions * passes, [&, channels = channels](int64_t task) {
        const int64_t begin = task % tiles * size, block = task / tiles;
        const int64_t first = block % blocks * together;
        const Tile tile{block / blocks, begin, std::min(begin + size, channels)};
        plane_class_weights(
            a, g, extents, tile, first, first + together, method,
            weights + block * together * channels + begin, channels);
      });
}

// What a map sums over channels: w A, or the value of an elementwise method
template <class F, class Method>
struct Summand {
  static constexpr bool kUsesWeight = has_given_weights<Method> || has_channel_weights<Method>;
  Method method;

  FASTCAM_HOST_DEVICE F operator()(F activation, F gradient, F weight) const {
    if constexpr (kUsesWeight) {
      return weight * activation;
    } else {
      return method.pixel(activation, gradient);
    }
  }
};

// Maps (N, K, positions) of a method
template <class T, class F, class Method>
void find_maps(
    const Features<T>& a, const Features<T>& g, const Extents& extents, const Method& method,
    bool rectify, F* maps) {
  constexpr bool kFinds = has_channel_weights<Method>;
  const auto [images, classes, channels, positions] = extents;
  const Summand<F, Method> summand{method};
  const Features<T>& with = summand.kUsesWeight ? a : g;  // gradients where they are summed
  if (in_rows(a)) {
    for_images(
        images, channels * positions * classes,
        [&, classes = classes, channels = channels, positions = positions](int64_t image) {
          std::vector<F> found(kFinds ? classes * channels : 0);
          const F* weights = found.data();
          int64_t stride = channels;
          if constexpr (kFinds)
            row_class_weights(a, g, extents, image, 0, classes, method, found.data());
          if constexpr (has_given_weights<Method>) {
            weights = method.at(image, 0);
            stride = method.class_stride;
          }
          row_maps(
              a, with, image, extents, weights, stride, summand, rectify,
              maps + image * classes * positions);
        });
    return;
  }
  sum_tiles(
      extents, tile_channels<T>(positions), rectify, maps,
      [&, positions = positions](const Tile& tile, int64_t first, int64_t last, F* rows) {
        F found[kClassBlock * kMaxTile];
        const F* weights = found;
        int64_t stride = kMaxTile;
        if constexpr (kFinds)
          plane_class_weights(a, g, extents, tile, first, last, method, found, stride);
        if constexpr (has_given_weights<Method>) {
          weights = method.at(tile.image, first) + tile.begin;
          stride = method.class_stride;
        }
        for (int64_t k = first; k < last; ++k)
          add_planes(
              a, with, tile, k, positions, weights + (k - first) * stride, summand,
              rows + k * positions);
      });
}

}  // namespace fastcam::cpu
