#include "class_product.h"
#include "cuda/cam.h"

namespace fastcam::cuda {

SlicedMaps sliced_weighted_sum(const Launch& launch, const WeightedSumOperands& o, bool relu) {
  const Tensor& activations = o.activations.tensor;
  const std::vector<int64_t> shape = map_shape(activations, o.classes);
  std::optional<SlicedMaps> maps;
  dispatch(activations.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using F = arithmetic_t<T>;
    const Features<T> a = o.activations.features<T>();
    const GivenWeights<F> given{data<F>(o.weights), o.image_stride(), o.class_stride()};
    maps = launch_cam(launch, a, a, o.extents, given, relu, shape, activations);
  });
  return *maps;  // windows of positions always fit
}

Tensor weighted_sum(const Tensor& activations, const Tensor& weights, bool relu) {
  const WeightedSumOperands o(activations, weights);
  const Launch launch(activations);
  if (o.extents.classes >= kManyClasses) return class_product(o, relu);
  const std::vector<int64_t> shape = map_shape(activations, o.classes);
  if (product(shape, 0, shape.size()) == 0)
    return empty(shape, arithmetic_type(activations), activations);
  return folded(launch, sliced_weighted_sum(launch, o, relu), relu, shape);
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CUDA, m) {
  m.impl("weighted_sum", TORCH_BOX(&weighted_sum));
}

}  // namespace fastcam::cuda
