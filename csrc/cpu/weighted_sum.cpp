#include "class_product.h"
#include "cpu/channels.h"
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
    const F* w = data<F>(o.weights);
    F* result = mutable_data<F>(maps);
    const auto [images, classes, channels, positions] = o.extents;
    if (in_rows(a)) {
      for_images(
          images, channels * positions * classes,
          [&, classes = classes, positions = positions](int64_t image) {
            row_maps(
                a, a, image, o.extents, w + image * o.image_stride(), o.class_stride(),
                Weighted<F>{}, relu, result + image * classes * positions);
          });
      return;
    }
    sum_tiles(
        o.extents, tile_channels<T>(positions), relu, result,
        [&, positions = positions](const Tile& tile, int64_t first, int64_t last, F* rows) {
          const F* image_weights = w + tile.image * o.image_stride() + tile.begin;
          for (int64_t k = first; k < last; ++k)
            add_planes(
                a, a, tile, 0, positions, image_weights + k * o.class_stride(), Weighted<F>{},
                rows + k * positions);
        });
  });
  return maps;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CPU, m) {
  m.impl("weighted_sum", TORCH_BOX(&weighted_sum));
}

}  // namespace fastcam::cpu
