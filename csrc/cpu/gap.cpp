#include "cpu/channels.h"
#include "operands.h"

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
    const int64_t size = tile_channels(g, positions, false), tiles = (channels + size - 1) / size;
    F* result = mutable_data<F>(weights);
    parallel_tasks(images * classes * tiles, size * positions, [&](int64_t task) {
      const int64_t map = task / tiles, begin = task % tiles * size;
      const Tile tile{map / classes, begin, std::min(begin + size, channels)};
      channel_weights(
          g, g, tile, map % classes, positions, GradCAM<F>{}, static_cast<const F*>(nullptr),
          result + map * channels + begin);
    });
  });
  return weights;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CPU, m) {
  m.impl("gap", TORCH_BOX(&gap));
}

}  // namespace fastcam::cpu
