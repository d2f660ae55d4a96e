#include "kernels/normalize.cuh"

#include "cuda/launch.h"

namespace fastcam::cuda {

Tensor normalize(const Tensor& maps, int64_t spatial_dims, double eps) {
  const MapOperands o(maps, spatial_dims);
  const Launch launch(maps);
  Tensor result = empty({maps.sizes().begin(), maps.sizes().end()}, arithmetic_type(maps), maps);
  if (result.numel() == 0) return result;

  dispatch(maps.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using F = arithmetic_t<T>;
    launch(
        normalize_kernel<T>, o.count, data<T>(o.maps), o.size.positions(), F(eps),
        mutable_data<F>(result));
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CUDA, m) {
  m.impl("normalize", TORCH_BOX(&normalize));
}

}  // namespace fastcam::cuda
