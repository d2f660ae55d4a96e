// A channel's sums over positions: for weights alone, and for maps whose channels are too large for
// kernels/cam.cuh.
//
// kAcross says that channels are contiguous in memory (channels_last, tokens). Lanes always run along what
// is contiguous, so that a row of threads reads neighbouring addresses.
#pragma once

#include "kernels/block.cuh"
#include "kernels/layout.h"
#include "kernels/methods.h"
#include "kernels/scalar.h"

namespace fastcam {

constexpr int kChannelsPerThread = 4;

// The rows of threads that share a channel whose positions are contiguous
FASTCAM_HOST_DEVICE int64_t rows_per_channel(int64_t positions) {
  constexpr int64_t kLong = 1024;
  return positions < kLong ? 1 : kRows;
}

template <bool kAcross>
FASTCAM_HOST_DEVICE int64_t channels_per_block(int64_t positions) {
  return kChannelsPerThread * (kAcross ? kLanes : kRows / rows_per_channel(positions));
}

// weights[n, k, c] of a channel-weight method. A block takes channels_per_block channels of one (n, k).
template <bool kAcross, class T, class Method>
__global__ void __launch_bounds__(kThreads, 2) channel_weights_kernel(
    Features<T> a, Features<T> g, Extents extents, Method method, arithmetic_t<T>* weights) {
  using F = arithmetic_t<T>;
  constexpr int kCount = kChannelsPerThread;
  const int64_t channels = channels_per_block<kAcross>(extents.positions);
  const int64_t tiles = (extents.channels + channels - 1) / channels;
  const int64_t map = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  const int64_t image = map / extents.classes, klass = map % extents.classes;

  const int rows = kAcross ? kRows : static_cast<int>(rows_per_channel(extents.positions));
  const int row = threadIdx.y % rows;
  const int first = kAcross ? row : row * kLanes + threadIdx.x;
  const int step = kAcross ? kRows : rows * kLanes;
  // this thread's channels c, c + stride...; those behind the last are read as the last
  const int stride = kAcross ? kLanes : kRows / rows;
  const int64_t c = tile * channels + (kAcross ? threadIdx.x : threadIdx.y / rows);
  const auto channel = [&](int j) {
    const int64_t number = c + j * stride;
    return number < extents.channels ? number : extents.channels - 1;
  };
  const T *a_channels[kCount], *g_channels[kCount];
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    a_channels[j] = a.at(image, 0, channel(j));
    g_channels[j] = g.at(image, klass, channel(j));
  }
  const auto activation = [&](int64_t p, int j) {
    return Method::kUsesActivations ? load(a_channels[j][p * a.strides.position]) : F(0);
  };
  const auto reduce = [&](F(&sums)[kCount]) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      if (!kAcross) sums[j] = sum_lanes(sums[j]);
      if (rows > 1) sums[j] = sum_rows(sums[j]);
    }
  };

  F totals[kCount] = {}, sums[kCount];
  if constexpr (Method::kUsesActivations) {
    const auto summand = [&](int64_t p, int j) { return method.summand(activation(p, j)); };
    strided_sums(first, step, extents.positions, summand, totals);
    reduce(totals);
  }
  const auto term = [&](int64_t p, int j) {
    return method.term(activation(p, j), load(g_channels[j][p * g.strides.position]), totals[j]);
  };
  strided_sums(first, step, extents.positions, term, sums);
  reduce(sums);
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    if (first == 0 && c + j * stride < extents.channels)
      weights[map * extents.channels + c + j * stride] =
          method.weight(sums[j], totals[j], extents.positions);
  }
}

}  // namespace fastcam
