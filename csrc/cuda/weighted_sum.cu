#include "cuda/channels.h"

namespace fastcam::cuda {

Tensor weighted_sum(const Tensor& activations, const Tensor& weights, bool relu) {
  const WeightedSumOperands o(activations, weights);
  const Launch launch(activations);
  Tensor maps = empty(map_shape(activations, o.classes), arithmetic_type(activations), activations);
  if (maps.numel() == 0) return maps;

  dispatch(activations.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using F = arithmetic_t<T>;
    const Features<T> a = o.activations.features<T>();
    launch_sum_channels(
        launch, a, a, o.extents, WeightedPixel<F>{data<F>(o.weights)}, relu, mutable_data<F>(maps));
  });
  return maps;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CUDA, m) {
  m.impl("weighted_sum", TORCH_BOX(&weighted_sum));
}

}  // namespace fastcam::cuda
