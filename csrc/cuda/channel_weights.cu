#include "kernels/channel_weights.cuh"

#include "cuda/cam.h"
#include "methods_by_name.h"

namespace fastcam::cuda {

void launch_channel_weights(
    const Launch& launch, const FeatureTensor& activations, const FeatureTensor& gradients,
    const Extents& e, const std::string& method, double eps, const Tensor& weights) {
  if (e.positions > 0 && fused_weights(launch, activations, gradients, e, method, eps, weights))
    return;
  dispatch(activations.tensor.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using F = arithmetic_t<T>;
    const Features<T> a = activations.features<T>(), g = gradients.features<T>();
    with_method<F>(method, eps, [&](const auto& functor) {
      using Method = std::decay_t<decltype(functor)>;
      if constexpr (has_channel_weights<Method>) {
        with_order(g, [&](auto across) {
          const auto kernel = channel_weights_kernel<across.value, T, Method>;
          const int64_t tiles = ceil_div(e.channels, channels_per_block<across.value>(e.positions));
          const int64_t blocks = e.images * e.classes * tiles;
          const int64_t slices = plan_weight_slices(blocks, e.positions, launch.device(kernel));
          F* result = mutable_data<F>(weights);
          const auto step = [&](WeightStep which, int64_t blocks, const Extents& extents,
                                const ChannelSums<F>& partial) {
            launch(kernel, blocks, a, g, extents, functor, which, partial, result);
          };
          if (slices == 1) return step(WeightStep::kWhole, blocks, e, {1, nullptr, nullptr});
          const auto sums = [&](int64_t maps) {
            return empty({maps, slices, e.channels}, arithmetic_type(weights), weights);
          };
          const Tensor totals = sums(Method::kUsesActivations ? e.images : 0);
          const Tensor terms = sums(e.images * e.classes);
          const ChannelSums<F> partial{slices, mutable_data<F>(totals), mutable_data<F>(terms)};
          if (Method::kUsesActivations)
            step(
                WeightStep::kTotals, e.images * tiles * slices,
                {e.images, 1, e.channels, e.positions}, partial);
          step(WeightStep::kTerms, blocks * slices, e, partial);
          step(WeightStep::kFold, blocks, e, partial);
        });
      }
    });
  });
}

}  // namespace fastcam::cuda
