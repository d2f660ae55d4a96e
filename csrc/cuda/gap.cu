#include "cuda/channels.h"

namespace fastcam::cuda {

Tensor gap(const Tensor& gradients, std::optional<int64_t> spatial_dims) {
  const GapOperands o(gradients, spatial_dims);
  const Launch launch(gradients);
  Tensor weights = empty(o.shape, arithmetic_type(gradients), gradients);
  if (weights.numel() == 0) return weights;

  dispatch(gradients.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using F = arithmetic_t<T>;
    const Features<T> g = o.gradients.features<T>();
    launch_channel_weights(launch, g, g, o.extents, GradCAM<F>{}, mutable_data<F>(weights));
  });
  return weights;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CUDA, m) {
  m.impl("gap", TORCH_BOX(&gap));
}

}  // namespace fastcam::cuda
