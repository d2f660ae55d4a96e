#include "cuda/channel_weights.h"

namespace fastcam::cuda {

Tensor gradcam_plus_plus_weights(const Tensor& activations, const Tensor& gradients, double eps) {
  const CamOperands o(activations, gradients);
  const Launch launch(activations);
  Tensor weights = empty(o.weights_shape(), arithmetic_type(activations), activations);
  if (weights.numel() > 0)
    launch_channel_weights(
        launch, o.activations, o.gradients, o.extents, "gradcam++", eps, weights);
  return weights;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CUDA, m) {
  m.impl("gradcam_plus_plus_weights", TORCH_BOX(&gradcam_plus_plus_weights));
}

}  // namespace fastcam::cuda
