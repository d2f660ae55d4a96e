#include "cuda/cam.h"

#include "methods_by_name.h"

namespace fastcam::cuda {

// For channels of which no tile fits: the weights first, then the sum.
SlicedMaps cam_by_weights(
    const Launch& launch, const CamOperands& o, const std::string& method, bool relu, double eps) {
  const Tensor& activations = o.activations.tensor;
  const Tensor weights = empty(o.weights_shape(), arithmetic_type(activations), activations);
  launch_channel_weights(launch, o.activations, o.gradients, o.extents, method, eps, weights);
  return sliced_weighted_sum(launch, WeightedSumOperands(activations, weights), relu);
}

SlicedMaps sliced_cam(
    const Launch& launch, const CamOperands& o, const std::string& method, bool relu, double eps) {
  const Tensor& activations = o.activations.tensor;
  const std::vector<int64_t> shape = map_shape(activations, o.classes);
  const Extents& e = o.extents;
  std::optional<SlicedMaps> maps;
  dispatch(activations.scalar_type(), [&](auto element) {
    using T = decltype(element);
    with_method<arithmetic_t<T>>(method, eps, [&](const auto& functor) {
      if (product(shape, 0, shape.size()) == 0) {
        maps = {empty(shape, arithmetic_type(activations), activations), 1};
      } else {
        maps = launch_cam(
            launch, o.activations.features<T>(), o.gradients.features<T>(), e, functor, relu, shape,
            activations);
      }
    });
  });
  return maps ? *maps : cam_by_weights(launch, o, method, relu, eps);
}

bool fused_weights(
    const Launch& launch, const FeatureTensor& activations, const FeatureTensor& gradients,
    const Extents& e, const std::string& method, double eps, const Tensor& weights) {
  bool launched = false;
  dispatch(activations.tensor.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using F = arithmetic_t<T>;
    with_method<F>(method, eps, [&](const auto& functor) {
      launched = launch_cam_kernel(
          launch, activations.features<T>(), gradients.features<T>(), e, functor,
          CamOutput::kWeights, [&](const CamPlan&) { return mutable_data<F>(weights); });
    });
  });
  return launched;
}

Tensor folded(
    const Launch& launch, const SlicedMaps& maps, bool relu, const std::vector<int64_t>& shape) {
  if (maps.slices == 1) return maps.partial;
  Tensor result = empty(shape, maps.partial.scalar_type(), maps.partial);
  const int64_t total = result.numel();
  dispatch_maps(result, [&](auto element) {
    using F = decltype(element);
    launch(
        fold_slices_kernel<F>, ceil_div(total, kLanes), data<F>(maps.partial), maps.slices,
        total / shape[0], total, relu, mutable_data<F>(result));
  });
  return result;
}

Tensor cam(
    const Tensor& activations, const Tensor& gradients, std::string method, bool relu, double eps) {
  const CamOperands o(activations, gradients);
  const Launch launch(activations);
  const SlicedMaps maps = sliced_cam(launch, o, method, relu, eps);
  return folded(launch, maps, relu, map_shape(activations, o.classes));
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CUDA, m) {
  m.impl("cam", TORCH_BOX(&cam));
}

}  // namespace fastcam::cuda
