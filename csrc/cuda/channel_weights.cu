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
        with_layout(g, [&](auto channels_last) {
          const auto kernel = channel_weights_kernel<channels_last.value, T, Method>;
          const int64_t shares =
              ceil_div(e.channels, channels_per_block<channels_last.value>(e.positions));
          const int64_t blocks = e.images * e.classes * shares;
          const int64_t slices = plan_weight_slices(blocks, e.positions, launch.device(kernel));
          F* result = mutable_data<F>(weights);
          const auto run = [&](WeightLaunch which, int64_t blocks, const Extents& extents,
                               const ChannelSums<F>& partial) {
            launch(kernel, blocks, a, g, extents, functor, which, partial, result);
          };
          if (slices == 1) return run(WeightLaunch::kWhole, blocks, e, {1, nullptr, nullptr});
          const auto sums = [&](int64_t maps) {
            return empty({maps, slices, e.channels}, arithmetic_type(weights), weights);
          };
          const Tensor totals = sums(Method::kUsesActivations ? e.images : 0);
          const Tensor terms = sums(e.images * e.classes);
          const ChannelSums<F> partial{slices, mutable_data<F>(totals), mutable_data<F>(terms)};
          if (Method::kUsesActivations)
            run(WeightLaunch::kTotals, e.images * shares * slices,
                {e.images, 1, e.channels, e.positions}, partial);
          run(WeightLaunch::kTerms, blocks * slices, e, partial);
          run(WeightLaunch::kFold, blocks, e, partial);
        });
      }
    });
  });
}

}  // namespace fastcam::cuda
