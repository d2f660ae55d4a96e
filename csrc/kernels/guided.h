// ReLU and its guided backward, on elements as they are stored.
#pragma once

#include "kernels/methods.h"
#include "kernels/scalar.h"

namespace fastcam {

// NaN stays.
template <class T>
FASTCAM_HOST_DEVICE T rectified(T value) {
  return load(value) < 0 ? T{} : value;
}

// Springenberg et al. 2015, arXiv 1412.6806, section 3.4: ReLU(gradient) where the input is positive
template <class T>
FASTCAM_HOST_DEVICE T guided_gradient(T gradient, T input) {
  return load(input) <= 0 ? T{} : rectified(gradient);
}

}  // namespace fastcam
