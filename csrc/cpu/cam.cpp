#include "cpu/channels.h"
#include "methods_by_name.h"
#include "operands.h"

namespace fastcam::cpu {

template <class T, class F, class Method>
void run(const CamOperands& o, const Method& method, bool relu, F* maps) {
  const Features<T> a = o.activations.features<T>(), g = o.gradients.features<T>();
  const int64_t positions = o.extents.positions;
  bool read_again = o.extents.classes > 1;
  if constexpr (has_channel_weights<Method>) read_again |= Method::kUsesActivations;
  sum_tiles(
      o.extents, tile_channels(a, positions, read_again), relu, maps,
      [&](const Tile& tile, int64_t first, int64_t last, F* rows) {
        if constexpr (has_channel_weights<Method>) {
          F totals[kMaxTile], weights[kMaxTile];
          if (Method::kUsesActivations) activation_totals(a, tile, positions, totals);
          for (int64_t k = first; k < last; ++k) {
            channel_weights(a, g, tile, k, positions, method, totals, weights);
            add_weighted(a, tile, positions, weights, rows + k * positions);
          }
        } else {
          for (int64_t k = first; k < last; ++k)
            add_elementwise(a, g, tile, k, positions, method, rows + k * positions);
        }
      });
}

Tensor cam(
    const Tensor& activations, const Tensor& gradients, std::string method, bool relu, double eps) {
  const CamOperands o(activations, gradients);
  Tensor maps = empty(map_shape(activations, o.classes), arithmetic_type(activations), activations);
  dispatch(activations.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using F = arithmetic_t<T>;
    with_method<F>(method, eps, [&](const auto& functor) {
      if (maps.numel() > 0) run<T>(o, functor, relu, mutable_data<F>(maps));
    });
  });
  return maps;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CPU, m) {
  m.impl("cam", TORCH_BOX(&cam));
}

}  // namespace fastcam::cpu
