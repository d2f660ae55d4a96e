// Heat to colour, and colour over picture.
#pragma once

#include <cstdint>

#include "kernels/platform.h"
#include "kernels/scalar.h"

namespace fastcam {

// The nearest value in [0, 1]; NaN counts as 0.
FASTCAM_HOST_DEVICE float to_unit(float value) {
#if defined(__CUDA_ARCH__)
  return __saturatef(value);
#else
  return value > 0 ? (value < 1 ? value : 1.0f) : 0.0f;
#endif
}

// The colour of a heat in [0, 1]: the nearest of 256
FASTCAM_HOST_DEVICE int32_t color_index(float heat) {
  return static_cast<int32_t>(to_unit(heat) * 255 + 0.5f);
}

// A picture's value on the scale 0 to 255
FASTCAM_HOST_DEVICE float level(uint8_t value) {
  return value;
}

template <class T>
FASTCAM_HOST_DEVICE float level(T value) {
  return to_unit(static_cast<float>(load(value))) * 255;
}

// opacity color + (1 - opacity) image, rounded
FASTCAM_HOST_DEVICE uint8_t blended(float opacity, uint8_t color, float image) {
  return static_cast<uint8_t>(static_cast<int32_t>(image + opacity * (color - image) + 0.5f));
}

}  // namespace fastcam
