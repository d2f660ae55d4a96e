#include "cpu/channels.h"
#include "operands/features.h"
#include "operands/tensors.h"

namespace fastcam::cpu {

Tensor gap(const Tensor& gradients, std::optional<int64_t> spatial_dims) {
  const GapOperands o(gradients, spatial_dims);
  Tensor weights = empty(o.shape, arithmetic_type(gradients), gradients);
  if (weights.numel() == 0) return weights;

  dispatch(gradients.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using F = arithmetic_t<T>;
    const Features<T> g = o.gradients.features<T>();
    const auto [images, classes, channels, positions] = o.extents;
    F* result = mutable_data<F>(weights);
    const F* totals = nullptr;
    if (in_rows(g)) {
      for_images(
          images * classes, channels * positions,
          [&, classes = classes, channels = channels, positions = positions](int64_t map) {
            row_weights(
                g, g, map / classes, map % classes, channels, positions, GradCAM<F>{}, totals,
                result + map * channels);
          });
      return;
    }
    const int64_t size = tile_channels<T>(positions), tiles = (channels + size - 1) / size;
    parallel_tasks(images * classes * tiles, size * positions, [&](int64_t task) {
      const int64_t map = task / tiles, begin = task % tiles * size;
      const Tile tile{map / classes, begin, std::min(begin + size, channels)};
      plane_weights(
          g, g, tile, map % classes, positions, GradCAM<F>{}, totals,
          result + map * channels + begin);
    });
  });
  return weights;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CPU, m) {
  m.impl("gap", TORCH_BOX(&gap));
}

}  // namespace fastcam::cpu
