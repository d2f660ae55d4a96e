#include "class_product.h"
#include "cpu/channels.h"
#include "operands.h"

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
    const F* w = data<F>(o.weights);
    const int64_t positions = o.extents.positions;
    sum_tiles(
        o.extents, tile_channels(a, positions, false), relu, mutable_data<F>(maps),
        [&](const Tile& tile, int64_t first, int64_t last, F* rows) {
          const F* image_weights = w + tile.image * o.image_stride() + tile.begin;
          for (int64_t k = first; k < last; ++k)
            add_weighted(
                a, tile, positions, image_weights + k * o.class_stride(), rows + k * positions);
        });
  });
  return maps;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CPU, m) {
  m.impl("weighted_sum", TORCH_BOX(&weighted_sum));
}

}  // namespace fastcam::cpu
