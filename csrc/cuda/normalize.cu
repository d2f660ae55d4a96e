#include "kernels/normalize.cuh"

#include "cuda/launch.h"
#include "operands/maps.h"

namespace fastcam::cuda {

Tensor normalize(const Tensor& maps, int64_t spatial_dims, double eps) {
  const MapOperands o(maps, spatial_dims);
  const Launch launch(maps);
  const ScalarType type = arithmetic_type(maps);
  Tensor result = empty({maps.sizes().begin(), maps.sizes().end()}, type, maps);
  if (result.numel() == 0) return result;

  const int64_t positions = o.size.positions();
  const int64_t shares = normalize_shares(o.count, positions);
  const Tensor memory = empty({shares > 1 ? o.count * shares : 0, 2}, type, maps);
  dispatch(maps.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using F = arithmetic_t<T>;
    Extremes<F>* extremes = shares > 1 ? mutable_data<Extremes<F>>(memory) : nullptr;
    if (extremes)
      launch(extremes_kernel<T>, o.count * shares, data<T>(o.maps), positions, shares, extremes);
    launch(
        normalize_kernel<T>, o.count * shares, data<T>(o.maps), positions, shares, extremes, F(eps),
        mutable_data<F>(result));
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CUDA, m) {
  m.impl("normalize", TORCH_BOX(&normalize));
}

}  // namespace fastcam::cuda
