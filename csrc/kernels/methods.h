// The formula of every method, one functor each. A: activation, g: gradient dS/dA, Z: positions.
//
// Channel-weight methods (M = sum_k w_k A^k):
//   w_k = weight(sum over positions of term(A, g, total), total, Z),
//   total = sum over positions of summand(A), for methods with kUsesActivations;
//   kTermUsesTotal: whether term reads the total, which then takes a pass of its own
// Elementwise methods: M = sum_k pixel(A, g)
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "kernels/platform.h"
#include "kernels/scalar.h"

namespace fastcam {

template <class F>
FASTCAM_HOST_DEVICE F relu(F value) {
  return greater(value, F(0));
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

  FASTCAM_HOST_DEVICE F summand(F a) const { return greater(a, floor); }
  FASTCAM_HOST_DEVICE F term(F, F g, F total) const {
    constexpr F kMax = std::numeric_limits<F>::max();
    const F product = g * total;
    const bool overflows = product > kMax || product < -kMax;
    F denominator = F(2) + product;
    if (eps != 0) denominator += eps / (g * g);
    const F value = (overflows ? F(1) : g) / (overflows ? total : denominator);
    return g <= 0 || denominator == 0 ? F(0) : value;
  }
  FASTCAM_HOST_DEVICE F weight(F sum, F, int64_t) const { return sum; }

  // By a reciprocal that is right to 1 ulp instead of a division, for totals that it can be taken of. A
  // gradient above the cap has the cap's term, 1 / total, and then g total cannot overflow; of a total of 0
  // it is infinite.
  FASTCAM_HOST_DEVICE bool quick(F total) const {
    return eps == 0 && (total == 0 || (total >= F(0x1p-60) && total <= F(0x1p100)));
  }
  FASTCAM_HOST_DEVICE static F cap(F total) { return F(0x1p60) * reciprocal(total); }
  FASTCAM_HOST_DEVICE static F quick_term(F g, F total, F cap) {
    const F positive = lesser(greater(g, F(0)), cap);
    return positive * reciprocal(F(2) + positive * total);
  }
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

// M = sum_k w_k A^k with weights that are given: (N, K, C)
template <class F>
struct GivenWeights {
  const F* weights;
  int64_t image_stride, class_stride;

  FASTCAM_HOST_DEVICE const F* at(int64_t image, int64_t klass) const {
    return weights + image * image_stride + klass * class_stride;
  }
};

template <class Method>
inline constexpr bool has_given_weights = false;
template <class F>
inline constexpr bool has_given_weights<GivenWeights<F>> = true;

// f(name, method) for every method
template <class F, class Function>
void for_methods(F eps, const Function& f) {
  f("gradcam", GradCAM<F>{});
  f("gradcam++", GradCAMPlusPlus<F>{eps});
  f("gradcam++-signed", GradCAMPlusPlus<F>{eps, -std::numeric_limits<F>::infinity()});
  f("xgradcam", XGradCAM<F>{eps});
  f("hirescam", HiResCAM<F>{});
  f("layercam", LayerCAM<F>{});
  f("gradcam-elementwise", GradCAMElementWise<F>{});
}

// Whether a method has quick terms, and may take them for channels of this total
template <class Method>
inline constexpr bool has_quick_terms = false;
template <>
inline constexpr bool has_quick_terms<GradCAMPlusPlus<float>> = true;
template <class F, class Method>
FASTCAM_HOST_DEVICE bool allows_quick_terms(const Method& method, F total) {
  if constexpr (has_quick_terms<Method>) return method.quick(total);
  return false;
}

// loop(term) for term(A, g) of a channel with this total
template <class F, class Method, class Loop>
FASTCAM_HOST_DEVICE void with_term(const Method& method, F total, const Loop& loop) {
  if constexpr (has_quick_terms<Method>) {
    if (method.quick(total)) {
      const F cap = method.cap(total);
      return loop([=](F, F g) { return Method::quick_term(g, total, cap); });
    }
  }
  loop([&](F a, F g) { return method.term(a, g, total); });
}

// loop(term) for term(j, A, g) of kCount channels; `quick`: with quick terms
template <class F, class Method, int kCount, class Loop>
FASTCAM_HOST_DEVICE void with_terms(
    const Method& method, const F (&totals)[kCount], bool quick, const Loop& loop) {
  if constexpr (has_quick_terms<Method>) {
    if (quick) {
      F caps[kCount];
      for (int j = 0; j < kCount; ++j) caps[j] = method.cap(totals[j]);
      return loop([&](int j, F, F g) { return Method::quick_term(g, totals[j], caps[j]); });
    }
  }
  loop([&](int j, F a, F g) { return method.term(a, g, totals[j]); });
}

template <class Method, class = void>
inline constexpr bool uses_activations = false;
template <class Method>
inline constexpr bool uses_activations<Method, std::void_t<decltype(Method::kUsesActivations)>> =
    Method::kUsesActivations;

// Whether a method gives each channel a weight, rather than each element a value.
template <class Method, class = void>
inline constexpr bool has_channel_weights = false;
template <class Method>
inline constexpr bool has_channel_weights<Method, std::void_t<decltype(Method::kUsesActivations)>> =
    true;

}  // namespace fastcam
