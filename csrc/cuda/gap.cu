#include "cuda/channel_weights.h"

namespace fastcam::cuda {

Tensor gap(const Tensor& gradients, std::optional<int64_t> spatial_dims) {
  const GapOperands o(gradients, spatial_dims);
  const Launch launch(gradients);
  Tensor weights = empty(o.shape, arithmetic_type(gradients), gradients);
  if (weights.numel() > 0)
    launch_channel_weights(launch, o.gradients, o.gradients, o.extents, "gradcam", 0, weights);
  return weights;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CUDA, m) {
  m.impl("gap", TORCH_BOX(&gap));
}

}  // namespace fastcam::cuda
