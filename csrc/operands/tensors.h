// Tensors as kernels take them: element types, pointers, and what is allocated.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <vector>

#include "kernels/scalar.h"

namespace fastcam {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// float32 for the 16 and 32 bit types, float64 for float64
inline ScalarType arithmetic_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls f with a value of the element type, so that `decltype` names it.
template <class Function>
void dispatch(ScalarType type, Function&& f) {
  if (type == ScalarType::Float) return f(float{});
  if (type == ScalarType::Half) return f(float16{});
  if (type == ScalarType::BFloat16) return f(bfloat16{});
  f(double{});
}

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

inline Tensor empty(const std::vector<int64_t>& shape, ScalarType type, const Tensor& like) {
  return torch::stable::empty(shape, type, std::nullopt, like.device());
}

inline int64_t product(IntHeaderOnlyArrayRef sizes, int64_t begin, int64_t end) {
  int64_t result = 1;
  for (int64_t d = begin; d < end; ++d) result *= sizes[d];
  return result;
}

}  // namespace fastcam
