// Launches of the two reductions in kernels/channels.cuh.
#pragma once

#include "cuda/launch.h"
#include "kernels/channels.cuh"

namespace fastcam::cuda {

template <class T>
bool channels_contiguous(const Features<T>& a) {
  return a.strides.channel == 1 && a.strides.position != 1;
}

template <class T, class Method>
void launch_channel_weights(
    const Launch& launch, const Features<T>& a, const Features<T>& g, const Extents& e,
    const Method& method, arithmetic_t<T>* weights) {
  const int64_t maps = e.images * e.classes;
  if (channels_contiguous(g)) {
    launch(
        channel_weights_kernel<true, T, Method>,
        maps * ceil_div(e.channels, kChannelsPerBlock<true>), a, g, e, method, weights);
  } else {
    launch(
        channel_weights_kernel<false, T, Method>,
        maps * ceil_div(e.channels, kChannelsPerBlock<false>), a, g, e, method, weights);
  }
}

template <class T, class Pixel>
void launch_sum_channels(
    const Launch& launch, const Features<T>& a, const Features<T>& g, const Extents& e,
    const Pixel& pixel, bool relu, arithmetic_t<T>* result) {
  const int64_t maps = e.images * e.classes;
  if (channels_contiguous(a)) {
    launch(
        sum_channels_kernel<true, T, Pixel>, maps * ceil_div(e.positions, kPositionsPerBlock<true>),
        a, g, e, pixel, relu, result);
  } else {
    launch(
        sum_channels_kernel<false, T, Pixel>,
        maps * ceil_div(e.positions, kPositionsPerBlock<false>), a, g, e, pixel, relu, result);
  }
}

}  // namespace fastcam::cuda
