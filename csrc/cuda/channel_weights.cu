#include "kernels/channel_weights.cuh"

#include "cuda/channel_weights.h"
#include "methods_by_name.h"

namespace fastcam::cuda {

void launch_channel_weights(
    const Launch& launch, const FeatureTensor& activations, const FeatureTensor& gradients,
    const Extents& e, const std::string& method, double eps, const Tensor& weights) {
  dispatch(activations.tensor.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using F = arithmetic_t<T>;
    const Features<T> a = activations.features<T>(), g = gradients.features<T>();
    with_method<F>(method, eps, [&](const auto& functor) {
      using Method = std::decay_t<decltype(functor)>;
      if constexpr (has_channel_weights<Method>) {
        with_order(g, [&](auto across) {
          const int64_t channels = channels_per_block<across.value>(e.positions);
          launch(
              channel_weights_kernel<across.value, T, Method>,
              e.images * e.classes * ceil_div(e.channels, channels), a, g, e, functor,
              mutable_data<F>(weights));
        });
      }
    });
  });
}

}  // namespace fastcam::cuda
