#include "kernels/overlay.cuh"

#include "cuda/enlarge.h"
#include "operands/pictures.h"

namespace fastcam::cuda {

template <class T>
void run(const Launch& launch, const OverlayOperands& o, const Tensor& images) {
  const Enlargement<float> e(o.size, o.enlarged);
  const Shares shares(e, shares_per_map(o.count, e.positions(), o.size.positions()));
  const StagedMaps<float> small(o.maps, 1, e);
  const ChannelOrder order = channel_order(o.enlarged, o.image_strides, 3);
  const bool same = order == channel_order(o.enlarged, o.picture_strides, 3);
  launch(
      overlay_kernel<T>, Grid(o.count * shares.blocks, small.shared_bytes), small.source,
      data<T>(images), data<uint8_t>(o.colormap), data<float>(o.opacities), e, shares,
      same ? order : ChannelOrder::kScattered, o.image_strides, o.picture_strides,
      mutable_data<uint8_t>(o.pictures));
}

Tensor overlay(
    const Tensor& images, const Tensor& maps, const Tensor& colormap, const Tensor& opacities) {
  const OverlayOperands o(images, maps, colormap, opacities);
  const Launch launch(images);
  if (o.pictures.numel() == 0) return o.pictures;
  if (o.is_uint8) {
    run<uint8_t>(launch, o, images);
  } else {
    dispatch(
        images.scalar_type(), [&](auto element) { run<decltype(element)>(launch, o, images); });
  }
  return o.pictures;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CUDA, m) {
  m.impl("overlay", TORCH_BOX(&overlay));
}

}  // namespace fastcam::cuda
