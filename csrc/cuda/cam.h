// Launches of the fused kernel in kernels/cam.cuh.
#pragma once

#include "cuda/channel_weights.h"
#include "kernels/cam.cuh"

namespace fastcam::cuda {

// Maps (N, [K], *S); or of several slices partial maps (N, slices, K, positions), which have not gone through
// ReLU.
struct SlicedMaps {
  Tensor partial;
  int64_t slices;
};

// One launch, by the plan, into result(plan); false, and no launch, if the plan has no tile.
template <class T, class Method, class Result>
bool launch_cam_kernel(
    const Launch& launch, const Features<T>& a, const Features<T>& g, const Extents& e,
    const Method& method, CamOutput output, const Result& result) {
  bool launched = false;
  with_layout(output == CamOutput::kWeights ? g : a, [&](auto channels_last) {
    const auto kernel = cam_kernel<channels_last.value, T, Method>;
    const CamPlan plan =
        plan_cam(cam_needs<T, Method>(channels_last.value), e, launch.device(kernel));
    if (plan.tile == 0) return;
    const CamArguments<T, Method> arguments(
        a, g, channels_last.value, e, method, plan, output, result(plan));
    launch(kernel, Grid(plan.blocks(e), plan.memory.bytes), arguments);
    launched = true;
  });
  return launched;
}

// Maps; nothing if the plan has no tile.
template <class T, class Method>
std::optional<SlicedMaps> launch_cam(
    const Launch& launch, const Features<T>& a, const Features<T>& g, const Extents& e,
    const Method& method, bool relu, const std::vector<int64_t>& map_shape, const Tensor& like) {
  std::optional<SlicedMaps> maps;
  const auto result = [&](const CamPlan& plan) {
    const std::vector<int64_t> partial_shape{e.images, plan.slices, e.classes, e.positions};
    maps = {
        empty(plan.slices > 1 ? partial_shape : map_shape, arithmetic_type(like), like),
        plan.slices};
    return mutable_data<arithmetic_t<T>>(maps->partial);
  };
  const CamOutput output = relu ? CamOutput::kRectifiedMaps : CamOutput::kMaps;
  launch_cam_kernel(launch, a, g, e, method, output, result);
  return maps;
}

// The maps of a method by its name
SlicedMaps sliced_cam(
    const Launch& launch, const CamOperands& o, const std::string& method, bool relu, double eps);

// The weights alone, contiguous as (N, K, C), into `weights`; false if the channels are too large for it
bool fused_weights(
    const Launch& launch, const FeatureTensor& activations, const FeatureTensor& gradients,
    const Extents& extents, const std::string& method, double eps, const Tensor& weights);

// The maps of weights that are given
SlicedMaps sliced_weighted_sum(const Launch& launch, const WeightedSumOperands& o, bool relu);

// The maps themselves, (N, [K], *S)
Tensor folded(
    const Launch& launch, const SlicedMaps& maps, bool relu, const std::vector<int64_t>& map_shape);

}  // namespace fastcam::cuda
