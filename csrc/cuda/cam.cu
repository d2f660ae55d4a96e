#include "cuda/channels.h"
#include "methods_by_name.h"

namespace fastcam::cuda {

template <class T, class F, class Method>
void run(
    const Launch& launch, const CamOperands& o, const Method& method, bool relu,
    const Tensor& maps) {
  const Features<T> a = o.activations.features<T>(), g = o.gradients.features<T>();
  F* result = mutable_data<F>(maps);
  if constexpr (has_channel_weights<Method>) {
    Tensor weights = empty(o.weights_shape(), maps.scalar_type(), maps);
    launch_channel_weights(launch, a, g, o.extents, method, mutable_data<F>(weights));
    const int64_t channels = o.extents.channels;
    const WeightedPixel<F> pixel{data<F>(weights), o.extents.classes * channels, channels};
    launch_sum_channels(launch, a, a, o.extents, pixel, relu, result);
  } else {
    const ElementwisePixel<F, Method> pixel{method};
    launch_sum_channels(launch, a, g, o.extents, pixel, relu, result);
  }
}

Tensor cam(
    const Tensor& activations, const Tensor& gradients, std::string method, bool relu, double eps) {
  const CamOperands o(activations, gradients);
  const Launch launch(activations);
  Tensor maps = empty(map_shape(activations, o.classes), arithmetic_type(activations), activations);
  dispatch(activations.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using F = arithmetic_t<T>;
    with_method<F>(method, eps, [&](const auto& functor) {
      if (maps.numel() > 0) run<T, F>(launch, o, functor, relu, maps);
    });
  });
  return maps;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CUDA, m) {
  m.impl("cam", TORCH_BOX(&cam));
}

}  // namespace fastcam::cuda
