#include "cuda/enlarge.h"
#include "operands/guided.h"

namespace fastcam::cuda {

Tensor guided_product(const Tensor& maps, const Tensor& guided, int64_t spatial_dims, double eps) {
  const GuidedProductOperands o(maps, guided, spatial_dims);
  const Launch launch(guided);
  if (o.product.numel() == 0) return o.product;

  const int64_t reads = o.size.positions() + bound_count(o.size, o.enlarged);
  const ChannelOrder order = channel_order(o.enlarged, o.guided_strides, o.channels);
  const bool same = order == channel_order(o.enlarged, o.product_strides, o.channels);
  dispatch(guided.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using F = arithmetic_t<T>;
    const Enlargement<F> e(o.size, o.enlarged);
    const StagedMaps<F> small(o.maps, o.classes, e);
    const Shares shares(e, shares_per_map(o.count, o.enlarged.positions(), reads));
    launch(
        guided_product_kernel<T>, Grid(o.count * shares.blocks, small.shared_bytes), small.source,
        data<T>(guided), e, shares, o.channels, same ? order : ChannelOrder::kScattered,
        o.guided_strides, o.product_strides, F(eps), mutable_data<T>(o.product));
  });
  return o.product;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CUDA, m) {
  m.impl("guided_product", TORCH_BOX(&guided_product));
}

}  // namespace fastcam::cuda
