// Extents and strides of activations, gradients and maps, in elements.
#pragma once

#include <cstdint>

#include "kernels/platform.h"

namespace fastcam {

// N images, K classes, C channels, and positions = the product of the spatial dimensions
struct Extents {
  int64_t images, classes, channels, positions;
};

// A stride is 0 along a dimension that the tensor does not have or that is expanded.
struct Strides {
  int64_t image, klass, channel, position;
};

template <class T>
struct Features {
  const T* data;
  Strides strides;

  FASTCAM_HOST_DEVICE const T* at(int64_t image, int64_t klass, int64_t channel) const {
    return data + image * strides.image + klass * strides.klass + channel * strides.channel;
  }
};

// Channels are next to each other and positions are not: torch's channels_last, or tokens (N, Z, C).
template <class T>
bool is_channels_last(const Features<T>& x) {
  return x.strides.channel == 1 && x.strides.position != 1;
}

// Strides of a picture or of guided gradients (N, K, C, depth, height, width), 0 for a missing dimension
struct VolumeStrides {
  int64_t image, klass, channel, depth, height, width;
};

// A map's spatial dimensions, the missing ones 1: (depth, height, width)
struct Size {
  int64_t depth, height, width;

  FASTCAM_HOST_DEVICE int64_t positions() const { return depth * height * width; }
};

}  // namespace fastcam
