#include "class_product.h"
#include "cuda/channels.h"

namespace fastcam::cuda {

Tensor weighted_sum(const Tensor& activations, const Tensor& weights, bool relu) {
  const WeightedSumOperands o(activations, weights);
  const Launch launch(activations);
  if (o.extents.classes >= kManyClasses) return class_product(o, relu);
  Tensor maps = empty(map_shape(activations, o.classes), arithmetic_type(activations), activations);
  if (maps.numel() == 0) return maps;

  dispatch(activations.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using F = arithmetic_t<T>;
    const Features<T> a = o.activations.features<T>();
    const WeightedPixel<F> pixel{data<F>(o.weights), o.image_stride(), o.class_stride()};
    launch_sum_channels(launch, a, a, o.extents, pixel, relu, mutable_data<F>(maps));
  });
  return maps;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CUDA, m) {
  m.impl("weighted_sum", TORCH_BOX(&weighted_sum));
}

}  // namespace fastcam::cuda
