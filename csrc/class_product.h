// weighted_sum for many classes: a matrix product, which BLAS does best.
#pragma once

#include <array>

#include "operands/features.h"
#include "operands/tensors.h"

namespace fastcam {

constexpr int64_t kManyClasses = 16;

inline void call(const char* name, const char* overload, StableIValue* stack) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack, TORCH_ABI_VERSION));
}

// maps (N, K, *S) = weights (N, K, C) x activations (N, C, positions)
inline Tensor class_product(const WeightedSumOperands& o, bool relu) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  const ScalarType type = o.weights.scalar_type();
  const Tensor& activations =
      o.activations.tensor;  // one stride over positions: flattened as a view
  const Tensor a = torch::stable::flatten(torch::stable::to(activations, type), 2);
  const auto [images, classes, channels, positions] = o.extents;
  const Tensor product = empty({images, classes, positions}, type, activations);
  // the variant with a result to write to, for autocast leaves it alone
  std::array<StableIValue, 3> operands{from(o.weights), from(a), from(product)};
  call("aten::matmul", "out", operands.data());
  Tensor maps = to<Tensor>(operands[0]);
  if (relu) {
    std::array<StableIValue, 1> stack{from(maps)};
    call("aten::relu_", "", stack.data());
    maps = to<Tensor>(stack[0]);
  }
  return torch::stable::view(maps, map_shape(activations, o.classes));
}

}  // namespace fastcam
