#include "cuda/enlarge.h"
#include "operands/maps.h"

namespace fastcam::cuda {

void launch_upsample(
    const Launch& launch, const Tensor& partial, int64_t count, int64_t classes, int64_t slices,
    bool relu, const Size& size, const Size& enlarged, bool normalize, double eps,
    const Tensor& result) {
  constexpr int64_t kCheaper = 8;  // reading a value of a slice, than computing an enlarged one
  const int64_t reads =
      slices * size.positions() / kCheaper + (normalize ? bound_count(size, enlarged) : 0);
  dispatch_maps(partial, [&](auto element) {
    using F = decltype(element);
    const Enlargement<F> e(size, enlarged);
    const StagedMaps<F> maps(partial, classes, slices, relu, e);
    const Shares shares(e, shares_per_map(count, enlarged.positions(), reads));
    launch(
        upsample_kernel<F>, Grid(count * shares.blocks, maps.shared_bytes), maps.source, e, shares,
        normalize, F(eps), mutable_data<F>(result));
  });
}

Tensor upsample(const Tensor& maps, std::vector<int64_t> size, bool normalize, double eps) {
  const ScalarType type = arithmetic_type(maps);
  const UpsampleOperands o(torch::stable::to(maps, type), size);
  const Launch launch(maps);
  Tensor result = empty(o.shape, type, maps);
  if (result.numel() > 0)
    launch_upsample(
        launch, o.maps, o.count, 1, 1, false, o.size, o.enlarged, normalize, eps, result);
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CUDA, m) {
  m.impl("upsample", TORCH_BOX(&upsample));
}

}  // namespace fastcam::cuda
