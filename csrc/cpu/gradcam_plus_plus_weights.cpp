#include "cpu/weights_and_maps.h"
#include "operands/features.h"
#include "operands/tensors.h"

namespace fastcam::cpu {

Tensor gradcam_plus_plus_weights(const Tensor& activations, const Tensor& gradients, double eps) {
  const CamOperands o(activations, gradients);
  Tensor weights = empty(o.weights_shape(), arithmetic_type(activations), activations);
  if (weights.numel() == 0) return weights;

  dispatch(activations.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using F = arithmetic_t<T>;
    find_weights(
        o.activations.features<T>(), o.gradients.features<T>(), o.extents,
        GradCAMPlusPlus<F>{F(eps)}, mutable_data<F>(weights));
  });
  return weights;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CPU, m) {
  m.impl("gradcam_plus_plus_weights", TORCH_BOX(&gradcam_plus_plus_weights));
}

}  // namespace fastcam::cpu
