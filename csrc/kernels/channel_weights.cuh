// A channel's sums over positions: for weights alone, and for maps whose channels are too large for
// kernels/cam.cuh.
//
// Lanes always go along what is contiguous, channels or positions, so that a warp reads neighbouring
// addresses.
#pragma once

#include "kernels/block.cuh"
#include "kernels/layout.h"
#include "kernels/methods.h"
#include "kernels/scalar.h"

namespace fastcam {

constexpr int kChannelsPerThread = 4;

// The warps that share a channel, not for channels_last
FASTCAM_HOST_DEVICE int64_t warps_per_channel(int64_t positions) {
  constexpr int64_t kLong = 1024;
  return positions < kLong ? 1 : kWarps;
}

template <bool kChannelsLast>
FASTCAM_HOST_DEVICE int64_t channels_per_block(int64_t positions) {
  return kChannelsPerThread * (kChannelsLast ? kLanes : kWarps / warps_per_channel(positions));
}

// What a launch does. Few channels with many positions fill a GPU only if their positions are divided
// into slices; the sums are then partial ones, folded by those who read them.
enum class WeightLaunch {
  kWhole,   // everything, of one slice
  kTotals,  // totals (N, slices, C), of the activations; extents.classes is 1
  kTerms,   // sums (N, K, slices, C), of the terms
  kFold,    // weights (N, K, C), from both
};

template <class F>
struct ChannelSums {
  int64_t slices;
  F *totals, *terms;
};

// The sum over slices of partial sums (slices, C) at channel c
template <class F>
__device__ F folded(const F* partial, int64_t slices, int64_t channels, int64_t c) {
  F sum = 0;
  for (int64_t slice = 0; slice < slices; ++slice) sum += partial[slice * channels + c];
  return sum;
}

// weights[n, k, c] of a channel-weight method. A block takes a share of the channels of one (n, k),
// channels_per_block, and of their positions one slice.
template <bool kChannelsLast, class T, class Method>
__global__ void __launch_bounds__(kThreads, 2) channel_weights_kernel(
    Features<T> a, Features<T> g, Extents extents, Method method, WeightLaunch launch,
    ChannelSums<arithmetic_t<T>> partial, arithmetic_t<T>* weights) {
  using F = arithmetic_t<T>;
  constexpr int kCount = kChannelsPerThread;
  const int64_t channels = channels_per_block<kChannelsLast>(extents.positions);
  const int64_t shares = (extents.channels + channels - 1) / channels;
  const int64_t slices =
      launch == WeightLaunch::kTotals || launch == WeightLaunch::kTerms ? partial.slices : 1;
  const int64_t slice = blockIdx.x % slices, share = blockIdx.x / slices % shares;
  const int64_t map = blockIdx.x / slices / shares;
  const int64_t image = map / extents.classes, klass = map % extents.classes;
  const int64_t begin = extents.positions * slice / slices;
  const int64_t end = extents.positions * (slice + 1) / slices;

  const int warps = kChannelsLast ? kWarps : static_cast<int>(warps_per_channel(extents.positions));
  const int warp = threadIdx.y % warps;
  const int first = kChannelsLast ? warp : warp * kLanes + threadIdx.x;
  const int stride = kChannelsLast ? kWarps : warps * kLanes;
  // this thread's channels c, c + apart...; those behind the last are read as the last
  const int apart = kChannelsLast ? kLanes : kWarps / warps;
  const int64_t c = share * channels + (kChannelsLast ? threadIdx.x : threadIdx.y / warps);
  const auto channel = [&](int j) {
    const int64_t number = c + j * apart;
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
      if (!kChannelsLast) sums[j] = sum_lanes(sums[j]);
      if (warps > 1) sums[j] = sum_warps(sums[j]);
    }
  };

  const auto sum_slice = [&](const auto& value, F(&sums)[kCount]) {
    strided_sums(begin + first, stride, end, value, sums);
    reduce(sums);
  };
  // result (maps, slices, C) at this thread's channels
  const auto write = [&](F* result, const auto& value) {
    result += (map * slices + slice) * extents.channels;
#pragma unroll
    for (int j = 0; j < kCount; ++j)
      if (first == 0 && c + j * apart < extents.channels) result[c + j * apart] = value(j);
  };

  F totals[kCount] = {}, sums[kCount];
  if constexpr (Method::kUsesActivations) {
    if (launch == WeightLaunch::kWhole || launch == WeightLaunch::kTotals) {
      sum_slice([&](int64_t p, int j) { return method.summand(activation(p, j)); }, totals);
      if (launch == WeightLaunch::kTotals) {
        write(partial.totals, [&](int j) { return totals[j]; });
        return;
      }
    } else if (launch == WeightLaunch::kFold || Method::kTermUsesTotal) {
      const F* of_image = partial.totals + image * partial.slices * extents.channels;
#pragma unroll
      for (int j = 0; j < kCount; ++j)
        totals[j] = folded(of_image, partial.slices, extents.channels, channel(j));
    }
  }
  if (launch == WeightLaunch::kFold) {
    const F* of_map = partial.terms + map * partial.slices * extents.channels;
#pragma unroll
    for (int j = 0; j < kCount; ++j)
      sums[j] = folded(of_map, partial.slices, extents.channels, channel(j));
  } else {
    const auto term = [&](int64_t p, int j) {
      return method.term(activation(p, j), load(g_channels[j][p * g.strides.position]), totals[j]);
    };
    sum_slice(term, sums);
    if (launch == WeightLaunch::kTerms) {
      write(partial.terms, [&](int j) { return sums[j]; });
      return;
    }
  }
  write(weights, [&](int j) { return method.weight(sums[j], totals[j], extents.positions); });
}

}  // namespace fastcam
