// The formula of every method, one functor each. A: activation, g: gradient dS/dA, Z: positions.
//
// Channel-weight methods (M = sum_k w_k A^k):
//   w_k = weight(sum over positions of term(A, g, total), total, Z),
//   total = sum over positions of summand(A), for methods that use activations
// Elementwise methods: M = sum_k pixel(A, g)
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "kernels/platform.h"

namespace fastcam {

template <class F>
FASTCAM_HOST_DEVICE F relu(F value) {
  return value < 0 ? F(0) : value;  // NaN is not below 0 and stays
}

// Selvaraju et al. 2017, arXiv 1610.02391, equation 1: w_k = (1/Z) sum g
template <class F>
struct GradCAM {
  static constexpr bool kUsesActivations = false;
  static constexpr bool kTermUsesTotal = false;

  FASTCAM_HOST_DEVICE F term(F, F g, F) const { return g; }
  FASTCAM_HOST_DEVICE F weight(F sum, F, int64_t positions) const { return sum / F(positions); }
};

// Chattopadhyay et al. 2018, arXiv 1710.11063, equations 5 and 19 with Y = exp(S):
// w_k = sum alpha ReLU(g), alpha = g^2 / (2 g^2 + total g^3 + eps), 0 where the denominator is 0.
// The derivation takes A >= 0. total = sum ReLU(A) keeps it so, and the denominator away from 0; without a
// floor it is sum A, as other libraries have it.
// alpha ReLU(g) is computed as g / (2 + g total + eps / g^2), without the powers that float32 would lose;
// where g total overflows, that is 1 / total.
template <class F>
struct GradCAMPlusPlus {
  static constexpr bool kUsesActivations = true;
  static constexpr bool kTermUsesTotal = true;
  F eps;
  F floor = 0;  // of activations in the total; -infinity: none

  FASTCAM_HOST_DEVICE F summand(F a) const { return a < floor ? floor : a; }  // NaN stays
  FASTCAM_HOST_DEVICE F term(F, F g, F total) const {
    constexpr F kMax = std::numeric_limits<F>::max();
    const F product = g * total;
    const bool overflows = product > kMax || product < -kMax;
    F denominator = F(2) + product;
    if (eps != 0) denominator += eps / (g * g);
    const F share = (overflows ? F(1) : g) / (overflows ? total : denominator);
    return g <= 0 || denominator == 0 ? F(0) : share;
  }
  FASTCAM_HOST_DEVICE F weight(F sum, F, int64_t) const { return sum; }
};

// Fu et al. 2020, arXiv 2008.02312, equation 8: w_k = sum g A / (total + eps), 0 where that is 0
template <class F>
struct XGradCAM {
  static constexpr bool kUsesActivations = true;
  static constexpr bool kTermUsesTotal = false;
  F eps;

  FASTCAM_HOST_DEVICE F summand(F a) const { return a; }
  FASTCAM_HOST_DEVICE F term(F a, F g, F) const { return g * a; }
  FASTCAM_HOST_DEVICE F weight(F sum, F total, int64_t) const {
    const F denominator = total + eps;
    return denominator == 0 ? F(0) : sum / denominator;
  }
};

// Draelos and Carin 2020, arXiv 2011.08891: M = sum_k g A
template <class F>
struct HiResCAM {
  FASTCAM_HOST_DEVICE F pixel(F a, F g) const { return g * a; }
};

// Jiang et al. 2021, LayerCAM, IEEE TIP 30, equation 6: M = sum_k ReLU(g) A
template <class F>
struct LayerCAM {
  FASTCAM_HOST_DEVICE F pixel(F a, F g) const { return relu(g) * a; }
};

// Element-wise Grad-CAM: M = sum_k ReLU(g A)
template <class F>
struct GradCAMElementWise {
  FASTCAM_HOST_DEVICE F pixel(F a, F g) const { return relu(g * a); }
};

// Whether a method gives each channel a weight, rather than each element a value.
template <class Method, class = void>
inline constexpr bool has_channel_weights = false;
template <class Method>
inline constexpr bool has_channel_weights<Method, std::void_t<decltype(Method::kUsesActivations)>> =
    true;

}  // namespace fastcam
