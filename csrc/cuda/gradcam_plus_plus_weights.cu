#include "cuda/channels.h"

namespace fastcam::cuda {

Tensor gradcam_plus_plus_weights(const Tensor& activations, const Tensor& gradients, double eps) {
  const CamOperands o(activations, gradients);
  const Launch launch(activations);
  Tensor weights = empty(o.weights_shape(), arithmetic_type(activations), activations);
  if (weights.numel() == 0) return weights;

  dispatch(activations.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using F = arithmetic_t<T>;
    launch_channel_weights(
        launch, o.activations.features<T>(), o.gradients.features<T>(), o.extents,
        GradCAMPlusPlus<F>{F(eps)}, mutable_data<F>(weights));
  });
  return weights;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CUDA, m) {
  m.impl("gradcam_plus_plus_weights", TORCH_BOX(&gradcam_plus_plus_weights));
}

}  // namespace fastcam::cuda
