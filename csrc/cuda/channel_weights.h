// Weights of channels, without maps.
#pragma once

#include <string>

#include "cuda/launch.h"
#include "operands/features.h"

namespace fastcam::cuda {

// Calls f with whether it is channels_last, as a constant.
template <class T, class Function>
void with_layout(const Features<T>& x, const Function& f) {
  if (is_channels_last(x)) {
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
