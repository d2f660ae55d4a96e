// ReLU and its guided backward, on elements as they are stored.
#pragma once

#include "kernels/methods.h"
#include "kernels/scalar.h"

namespace fastcam {

// NaN is neither below 0 nor 0. Of a 16-bit type the bits say it: the sign, and at most those of -Inf.
template <class T>
FASTCAM_HOST_DEVICE bool is_negative(T value) {
  return load(value) < 0;
}
FASTCAM_HOST_DEVICE bool is_negative(float16 value) {
  return value.bits > 0x8000u && value.bits <= 0xfc00u;
}
FASTCAM_HOST_DEVICE bool is_negative(bfloat16 value) {
  return value.bits > 0x8000u && value.bits <= 0xff80u;
}

template <class T>
FASTCAM_HOST_DEVICE bool is_zero(T value) {
  return load(value) == 0;
}
FASTCAM_HOST_DEVICE bool is_zero(float16 value) {
  return (value.bits & 0x7fffu) == 0;
}
FASTCAM_HOST_DEVICE bool is_zero(bfloat16 value) {
  return (value.bits & 0x7fffu) == 0;
}

// NaN stays.
template <class T>
FASTCAM_HOST_DEVICE T rectified(T value) {
  return is_negative(value) ? T{} : value;
}

// Springenberg et al. 2015, arXiv 1412.6806, section 3.4: ReLU(gradient) where the input is positive
template <class T>
FASTCAM_HOST_DEVICE T guided_gradient(T gradient, T input) {
  return is_negative(input) || is_zero(input) ? T{} : rectified(gradient);
}

}  // namespace fastcam
