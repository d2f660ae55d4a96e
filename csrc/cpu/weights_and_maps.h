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

// map = ReLU(sum of `slices` partial maps that lie `stride` apart), the slices in order
template <class F>
FASTCAM_MULTIVERSION void fold_maps(
    const F* partial, int64_t slices, int64_t stride, int64_t positions, bool rectify, F* map) {
  for (int64_t slice = 0; slice < slices; ++slice) {
#pragma omp simd
    for (int64_t p = 0; p < positions; ++p)
      map[p] = slice == 0 ? partial[p] : map[p] + partial[slice * stride + p];
  }
  if (rectify) {
#pragma omp simd
    for (int64_t p = 0; p < positions; ++p) map[p] = relu(map[p]);
  }
}

constexpr int64_t kMaxClasses = 8;  // of a share

// maps[n, k] = ReLU(sum over tiles of what add_tile(tile, first, last, maps of n) adds to those of classes
// first to last), in parallel.
//
// Tasks are (image, share of the classes, slice of the tiles). Few images and classes have several slices, whose
// partial maps are added in order. How many is decided by the shape alone, so the same input gives the same
// bits with any number of threads.
template <class F, class AddTile>
void sum_tiles(
    const Extents& extents, int64_t tile_size, bool rectify, F* maps, const AddTile& add_tile) {
  constexpr int64_t kTasks = 16, kSliceChannels = 16;
  const auto [images, classes, channels, positions] = extents;
  const int64_t shares = (classes + kMaxClasses - 1) / kMaxClasses;
  const int64_t tiles = std::max<int64_t>(1, (channels + tile_size - 1) / tile_size);
  const int64_t most = std::clamp<int64_t>(channels / kSliceChannels, 1, tiles);
  const int64_t slices = std::clamp<int64_t>(kTasks / (images * shares), 1, most);
  const int64_t map_stride = classes * positions;

  // partial maps (N, slices, K, positions)
  std::vector<F> partial(slices > 1 ? images * slices * map_stride : 0);
  const int64_t work = positions * (channels / slices + 1) * std::min(classes, kMaxClasses);
  parallel_tasks(images * shares * slices, work, [&](int64_t task) {
    const int64_t slice = task % slices, share = task / slices % shares,
                  image = task / (slices * shares);
    const int64_t first_class = share * kMaxClasses;
    const int64_t last_class = std::min(first_class + kMaxClasses, classes);
    F* maps_of_image = slices > 1 ? partial.data() + (image * slices + slice) * map_stride
                                  : maps + image * map_stride;
    std::fill(
        maps_of_image + first_class * positions, maps_of_image + last_class * positions, F(0));
    for (int64_t t = tiles * slice / slices; t < tiles * (slice + 1) / slices; ++t) {
      const Tile tile{image, t * tile_size, std::min((t + 1) * tile_size, channels)};
      add_tile(tile, first_class, last_class, maps_of_image);
    }
  });
  if (slices == 1 && !rectify) return;
  parallel_tasks(images * classes, positions * slices, [&](int64_t task) {
    const int64_t image = task / classes, klass = task % classes;
    F* map = maps + task * positions;
    if (slices == 1) {
      fold_maps(map, 1, 0, positions, rectify, map);
    } else {
      const F* maps_of_slices = partial.data() + image * slices * map_stride + klass * positions;
      fold_maps(maps_of_slices, slices, map_stride, positions, rectify, map);
    }
  });
}

// weights[k - first, c] of a channel-weight method, channels_last, for the classes k from first to last of one
// image
template <class T, class F, class Method>
void class_weights_channels_last(
    const Features<T>& a, const Features<T>& g, const Extents& extents, int64_t image,
    int64_t first, int64_t last, const Method& method, F* weights) {
  const int64_t channels = extents.channels, positions = extents.positions;
  std::vector<F> totals(Method::kUsesActivations ? channels : 0);
  if constexpr (Method::kUsesActivations)
    totals_channels_last(a, image, channels, positions, method, totals.data());
  for (int64_t k = first; k < last; ++k)
    weights_channels_last(
        a, g, image, k, channels, positions, method, totals.data(),
        weights + (k - first) * channels);
}

// The same, contiguous, for the channels of a tile; the weights of two classes lie `stride` apart.
template <class T, class F, class Method>
void class_weights_contiguous(
    const Features<T>& a, const Features<T>& g, const Extents& extents, const Tile& tile,
    int64_t first, int64_t last, const Method& method, F* weights, int64_t stride) {
  F totals[kMaxTile];
  if constexpr (Method::kUsesActivations)
    totals_contiguous(a, tile, extents.positions, method, totals);
  for (int64_t k = first; k < last; ++k)
    weights_contiguous(
        a, g, tile, k, extents.positions, method, totals, weights + (k - first) * stride);
}

// Weights (N, K, C) of a channel-weight method
template <class T, class F, class Method>
void find_weights(
    const Features<T>& a, const Features<T>& g, const Extents& extents, const Method& method,
    F* weights) {
  const auto [images, classes, channels, positions] = extents;
  // a task takes all classes that share their channels' totals
  const int64_t together = Method::kUsesActivations ? classes : 1, shares = classes / together;
  const int64_t passes = together + (Method::kUsesActivations ? 1 : 0);
  if (is_channels_last(a)) {
    for_images(
        images * shares, channels * positions * passes, [&, channels = channels](int64_t task) {
          const int64_t first = task % shares * together;
          class_weights_channels_last(
              a, g, extents, task / shares, first, first + together, method,
              weights + task * together * channels);
        });
    return;
  }
  const int64_t size = tile_channels<T>(positions), tiles = (channels + size - 1) / size;
  parallel_tasks(
      images * shares * tiles, size * positions * passes, [&, channels = channels](int64_t task) {
        const int64_t begin = task % tiles * size, number = task / tiles;
        const int64_t first = number % shares * together;
        const Tile tile{number / shares, begin, std::min(begin + size, channels)};
        class_weights_contiguous(
            a, g, extents, tile, first, first + together, method,
            weights + number * together * channels + begin, channels);
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
  if (is_channels_last(a)) {
    for_images(
        images, channels * positions * classes,
        [&, classes = classes, channels = channels, positions = positions](int64_t image) {
          std::vector<F> found(kFinds ? classes * channels : 0);
          const F* weights = found.data();
          int64_t stride = channels;
          if constexpr (kFinds)
            class_weights_channels_last(a, g, extents, image, 0, classes, method, found.data());
          if constexpr (has_given_weights<Method>) {
            weights = method.at(image, 0);
            stride = method.class_stride;
          }
          maps_channels_last(
              a, with, image, extents, weights, stride, summand, rectify,
              maps + image * classes * positions);
        });
    return;
  }
  sum_tiles(
      extents, tile_channels<T>(positions), rectify, maps,
      [&, positions = positions](const Tile& tile, int64_t first, int64_t last, F* maps_of_image) {
        F found[kMaxClasses * kMaxTile];
        const F* weights = found;
        int64_t stride = kMaxTile;
        if constexpr (kFinds)
          class_weights_contiguous(a, g, extents, tile, first, last, method, found, stride);
        if constexpr (has_given_weights<Method>) {
          weights = method.at(tile.image, first) + tile.begin;
          stride = method.class_stride;
        }
        for (int64_t k = first; k < last; ++k)
          add_contiguous(
              a, with, tile, k, positions, weights + (k - first) * stride, summand,
              maps_of_image + k * positions);
      });
}

}  // namespace fastcam::cpu
