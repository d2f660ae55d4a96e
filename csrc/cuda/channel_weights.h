// Weights of channels, by a launch of their own.
#pragma once

#include <string>

#include "cuda/launch.h"
#include "operands/features.h"

namespace fastcam::cuda {

template <class T>
bool channels_contiguous(const Features<T>& a) {
  return a.strides.channel == 1 && a.strides.position != 1;
}

// Calls f with whether channels are contiguous, as a constant.
template <class T, class Function>
void with_order(const Features<T>& a, const Function& f) {
  if (channels_contiguous(a)) {
    f(std::true_type{});
  } else {
    f(std::false_type{});
  }
}

// The weights of a channel-weight method by its name, contiguous as (N, K, C), into `weights`
void launch_channel_weights(
    const Launch& launch, const FeatureTensor& activations, const FeatureTensor& gradients,
    const Extents& extents, const std::string& method, double eps, const Tensor& weights);

}  // namespace fastcam::cuda
