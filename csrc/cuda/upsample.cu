#include "cuda/launch.h"
#include "kernels/enlarge.cuh"

namespace fastcam::cuda {

Tensor upsample(const Tensor& maps, std::vector<int64_t> size, bool normalize, double eps) {
  const UpsampleOperands o(maps, size);
  const Launch launch(maps);
  Tensor result = empty(o.shape, arithmetic_type(maps), maps);
  if (result.numel() == 0) return result;

  const int64_t bounds = normalize ? bound_count(o.size, o.enlarged) : 0;
  const int64_t shares = shares_per_map(o.count, o.enlarged.positions(), bounds);
  dispatch(maps.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using F = arithmetic_t<T>;
    launch(
        upsample_kernel<T>, o.count * shares, data<T>(o.maps), o.size, o.enlarged, shares,
        normalize, F(eps), mutable_data<F>(result));
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CUDA, m) {
  m.impl("upsample", TORCH_BOX(&upsample));
}

}  // namespace fastcam::cuda
