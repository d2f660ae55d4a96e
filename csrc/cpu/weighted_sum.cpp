#include "class_product.h"
#include "cpu/weights_and_maps.h"
#include "operands/features.h"
#include "operands/tensors.h"

namespace fastcam::cpu {

Tensor weighted_sum(const Tensor& activations, const Tensor& weights, bool relu) {
  const WeightedSumOperands o(activations, weights);
  if (o.extents.classes >= kManyClasses) return class_product(o, relu);
  Tensor maps = empty(map_shape(activations, o.classes), arithmetic_type(activations), activations);
  if (maps.numel() == 0) return maps;

  dispatch(activations.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using F = arithmetic_t<T>;
    const Features<T> a = o.activations.features<T>();
    const GivenWeights<F> given{data<F>(o.weights), o.image_stride(), o.class_stride()};
    find_maps(a, a, o.extents, given, relu, mutable_data<F>(maps));
  });
  return maps;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CPU, m) {
  m.impl("weighted_sum", TORCH_BOX(&weighted_sum));
}

}  // namespace fastcam::cpu
