#include "cuda/launch.h"
#include "kernels/enlarge.cuh"

namespace fastcam::cuda {

Tensor guided_product(const Tensor& maps, const Tensor& guided, int64_t spatial_dims, double eps) {
  const GuidedProductOperands o(maps, guided, spatial_dims);
  const Launch launch(guided);
  if (o.product.numel() == 0) return o.product;

  const int64_t bounds = bound_count(o.size, o.enlarged);
  const int64_t shares = shares_per_map(o.count, o.enlarged.positions(), bounds);
  dispatch(guided.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using F = arithmetic_t<T>;
    launch(
        guided_product_kernel<T>, o.count * shares, data<F>(o.maps), data<T>(guided), o.size,
        o.enlarged, shares, o.classes, o.channels, o.guided_strides, o.product_strides, F(eps),
        mutable_data<T>(o.product));
  });
  return o.product;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CUDA, m) {
  m.impl("guided_product", TORCH_BOX(&guided_product));
}

}  // namespace fastcam::cuda
