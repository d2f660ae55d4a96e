// Heat to colour, and colour over picture.
#pragma once

#include <cstdint>

#include "kernels/platform.h"
#include "kernels/scalar.h"

namespace fastcam {

// The colour of a heat in [0, 1]: the nearest of 256; NaN counts as 0.
FASTCAM_HOST_DEVICE int32_t color_index(float heat) {
#if defined(__CUDA_ARCH__)
  const float inside = __saturatef(heat);
#else
  const float inside = heat > 0 ? (heat < 1 ? heat : 1.0f) : 0.0f;
#endif
  return static_cast<int32_t>(inside * 255 + 0.5f);
}

// A picture's value on the scale 0 to 255
FASTCAM_HOST_DEVICE float level(uint8_t value) {
  return value;
}

template <class T>
FASTCAM_HOST_DEVICE float level(T value) {
  const float unit = static_cast<float>(load(value));
  return (unit > 0 ? (unit < 1 ? unit : 1.0f) : 0.0f) * 255;
}

// alpha color + (1 - alpha) image, rounded
FASTCAM_HOST_DEVICE uint8_t blended(float alpha, uint8_t color, float image) {
  return static_cast<uint8_t>(static_cast<int32_t>(alpha * color + (1 - alpha) * image + 0.5f));
}

}  // namespace fastcam
