// The two reductions of every map: a channel's sums over positions, and a map's sum over channels.
//
// kAcross says that channels are contiguous in memory (channels_last, tokens). Lanes always run along what
// is contiguous, so that a row of threads reads neighbouring addresses.
#pragma once

#include "kernels/block.cuh"
#include "kernels/layout.h"
#include "kernels/methods.h"
#include "kernels/scalar.h"

namespace fastcam {

// A block's share of the channels or positions: a row of threads or a lane each.
template <bool kAcross>
constexpr int kChannelsPerBlock = kAcross ? kLanes : kRows;
template <bool kAcross>
constexpr int kPositionsPerBlock = kAcross ? kRows : kLanes;

// weights[n, k, c] of a channel-weight method. A block takes kChannelsPerBlock channels of one (n, k).
template <bool kAcross, class T, class Method>
__global__ void channel_weights_kernel(
    Features<T> a, Features<T> g, Extents extents, Method method, arithmetic_t<T>* weights) {
  using F = arithmetic_t<T>;
  constexpr int kChannels = kChannelsPerBlock<kAcross>;
  const int64_t tiles = (extents.channels + kChannels - 1) / kChannels;
  const int64_t map = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  const int64_t image = map / extents.classes, klass = map % extents.classes;
  const int64_t c = tile * kChannels + (kAcross ? threadIdx.x : threadIdx.y);
  const bool inside = c < extents.channels;
  const int first = kAcross ? threadIdx.y : threadIdx.x, step = kAcross ? kRows : kLanes;
  const auto reduce = [](F value) { return kAcross ? sum_rows(value) : sum_lanes(value); };

  const T* a_channel = a.at(image, 0, inside ? c : 0);
  const T* g_channel = g.at(image, klass, inside ? c : 0);
  const auto activation = [&](int64_t p) {
    return Method::kUsesActivations ? load(a_channel[p * a.strides.position]) : F(0);
  };
  F total = 0;
  if (Method::kUsesActivations)
    total = reduce(strided_sum<F>(first, step, extents.positions, activation));
  const F sum = reduce(strided_sum<F>(first, step, extents.positions, [&](int64_t p) {
    return method.term(activation(p), load(g_channel[p * g.strides.position]), total);
  }));
  if (inside && first == 0)
    weights[map * extents.channels + c] = method.weight(sum, total, extents.positions);
}

// What one element adds to the map of a channel-weight method: w_k A^k
template <class F>
struct WeightedPixel {
  static constexpr bool kUsesGradients = false;
  const F* weights;
  int64_t image_stride, class_stride;

  FASTCAM_HOST_DEVICE F operator()(int64_t image, int64_t klass, int64_t channel, F a, F) const {
    return weights[image * image_stride + klass * class_stride + channel] * a;
  }
};

// What one element adds to the map of an elementwise method
template <class F, class Method>
struct ElementwisePixel {
  static constexpr bool kUsesGradients = true;
  Method method;

  FASTCAM_HOST_DEVICE F operator()(int64_t, int64_t, int64_t, F a, F g) const {
    return method.pixel(a, g);
  }
};

// maps[n, k, p] = ReLU(sum_c pixel(A, g)). A block takes kPositionsPerBlock positions of one (n, k).
template <bool kAcross, class T, class Pixel>
__global__ void sum_channels_kernel(
    Features<T> a, Features<T> g, Extents extents, Pixel pixel, bool rectify,
    arithmetic_t<T>* maps) {
  using F = arithmetic_t<T>;
  constexpr int kPositions = kPositionsPerBlock<kAcross>;
  const int64_t tiles = (extents.positions + kPositions - 1) / kPositions;
  const int64_t map = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  const int64_t image = map / extents.classes, klass = map % extents.classes;
  const int64_t p = tile * kPositions + (kAcross ? threadIdx.y : threadIdx.x);
  const bool inside = p < extents.positions;
  const int first = kAcross ? threadIdx.x : threadIdx.y, step = kAcross ? kLanes : kRows;

  const T* a_position = a.at(image, 0, 0) + (inside ? p : 0) * a.strides.position;
  const T* g_position = g.at(image, klass, 0) + (inside ? p : 0) * g.strides.position;
  F sum = strided_sum<F>(first, step, extents.channels, [&](int64_t c) {
    const F gradient = Pixel::kUsesGradients ? load(g_position[c * g.strides.channel]) : F(0);
    return pixel(image, klass, c, load(a_position[c * a.strides.channel]), gradient);
  });
  sum = kAcross ? sum_lanes(sum) : sum_rows(sum);
  if (inside && first == 0) maps[map * extents.positions + p] = rectify ? relu(sum) : sum;
}

}  // namespace fastcam
