// Launches of the fused kernel in kernels/cam.cuh.
#pragma once

#include "cuda/channel_weights.h"
#include "kernels/cam.cuh"

namespace fastcam::cuda {

// Maps (N, [K], *S); or, with several slices, what they are the sums of: (N, slices, K, positions), which
// still have to go through ReLU.
struct SlicedMaps {
  Tensor parts;
  int64_t slices;
};

// One launch, by the plan; nothing where the plan has none.
template <class T, class Method>
std::optional<SlicedMaps> launch_cam(
    const Launch& launch, const Features<T>& a, const Features<T>& g, const Extents& e,
    const Method& method, bool relu, const std::vector<int64_t>& map_shape, const Tensor& like) {
  using F = arithmetic_t<T>;
  std::optional<SlicedMaps> maps;
  with_order(a, [&](auto across) {
    const auto kernel = cam_kernel<across.value, T, Method>;
    const CamPlan plan = plan_cam(cam_needs<T, Method>(across.value), e, launch.device(kernel));
    if (plan.tile == 0) return;
    const std::vector<int64_t> partial{e.images, plan.slices, e.classes, e.positions};
    maps = {empty(plan.slices > 1 ? partial : map_shape, arithmetic_type(like), like), plan.slices};
    const CamArguments<T, Method> arguments{
        {a, across.value, e, plan},  {g, across.value, e, plan}, e, method, plan, relu,
        mutable_data<F>(maps->parts)};
    launch(kernel, Grid(plan.blocks(e), plan.memory.bytes), arguments);
  });
  return maps;
}

// The maps of a method by its name
SlicedMaps sliced_cam(
    const Launch& launch, const CamOperands& o, const std::string& method, bool relu, double eps);

// The maps of weights that are given
SlicedMaps sliced_weighted_sum(const Launch& launch, const WeightedSumOperands& o, bool relu);

// The maps themselves, (N, [K], *S)
Tensor folded(
    const Launch& launch, const SlicedMaps& maps, bool relu, const std::vector<int64_t>& map_shape);

}  // namespace fastcam::cuda
