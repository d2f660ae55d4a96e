#include "cuda/cam.h"
#include "cuda/enlarge.h"
#include "operands/saliency.h"

namespace fastcam::cuda {

// Two launches: the second folds the slices while it enlarges.
Tensor saliency(
    const Tensor& activations, const Tensor& gradients, std::string method,
    std::vector<int64_t> size, bool relu, bool normalize, double eps) {
  const SaliencyOperands o(activations, gradients, size);
  const Launch launch(activations);
  SlicedMaps maps = sliced_cam(launch, o, method, relu, eps);
  Tensor result = empty(o.shape, maps.partial.scalar_type(), activations);
  if (result.numel() == 0) return result;
  if (!folds_while_enlarging(maps.slices, o.extents.positions))
    maps = {folded(launch, maps, relu, map_shape(activations, o.classes)), 1};
  launch_upsample(
      launch, maps.partial, o.extents.images * o.extents.classes, o.extents.classes, maps.slices,
      relu, o.size, o.enlarged, normalize, 0, result);
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CUDA, m) {
  m.impl("saliency", TORCH_BOX(&saliency));
}

}  // namespace fastcam::cuda
