#include "cpu/channels.h"
#include "operands/features.h"
#include "operands/tensors.h"

namespace fastcam::cpu {

Tensor gradcam_plus_plus_weights(const Tensor& activations, const Tensor& gradients, double eps) {
  const CamOperands o(activations, gradients);
  Tensor weights = empty(o.weights_shape(), arithmetic_type(activations), activations);
  if (weights.numel() == 0) return weights;

  dispatch(activations.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using F = arithmetic_t<T>;
    const Features<T> a = o.activations.features<T>(), g = o.gradients.features<T>();
    const auto [images, classes, channels, positions] = o.extents;
    const GradCAMPlusPlus<F> method{F(eps)};
    F* result = mutable_data<F>(weights);
    if (in_rows(a)) {
      for_images(
          images, channels * positions * (classes + 1),
          [&, classes = classes, channels = channels, positions = positions](int64_t image) {
            std::vector<F> totals(channels);
            row_totals(a, image, channels, positions, method, totals.data());
            for (int64_t k = 0; k < classes; ++k)
              row_weights(
                  a, g, image, k, channels, positions, method, totals.data(),
                  result + (image * classes + k) * channels);
          });
      return;
    }
    const int64_t size = tile_channels<T>(positions), tiles = (channels + size - 1) / size;
    parallel_tasks(images * tiles, size * positions * (classes + 1), [&](int64_t task) {
      const int64_t begin = task % tiles * size;
      const Tile tile{task / tiles, begin, std::min(begin + size, channels)};
      F totals[kMaxTile];
      plane_totals(a, tile, positions, method, totals);
      for (int64_t k = 0; k < classes; ++k)
        plane_weights(
            a, g, tile, k, positions, method, totals,
            result + (tile.image * classes + k) * channels + begin);
    });
  });
  return weights;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CPU, m) {
  m.impl("gradcam_plus_plus_weights", TORCH_BOX(&gradcam_plus_plus_weights));
}

}  // namespace fastcam::cpu
