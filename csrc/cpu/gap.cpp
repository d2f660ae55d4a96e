#include "cpu/weights_and_maps.h"
#include "operands/features.h"
#include "operands/tensors.h"

namespace fastcam::cpu {

Tensor gap(const Tensor& gradients, std::optional<int64_t> spatial_dims) {
  const GapOperands o(gradients, spatial_dims);
  Tensor weights = empty(o.shape, arithmetic_type(gradients), gradients);
  if (weights.numel() == 0) return weights;

  dispatch(gradients.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using F = arithmetic_t<T>;
    const Features<T> g = o.gradients.features<T>();
    find_weights(g, g, o.extents, GradCAM<F>{}, mutable_data<F>(weights));
  });
  return weights;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CPU, m) {
  m.impl("gap", TORCH_BOX(&gap));
}

}  // namespace fastcam::cpu
