#include "kernels/overlay.cuh"

#include "cuda/launch.h"

namespace fastcam::cuda {

template <class T>
void run(const Launch& launch, const OverlayOperands& o, const Tensor& images, double alpha) {
  const int64_t shares = shares_per_map(o.count, o.enlarged.positions(), 0);
  launch(
      overlay_kernel<T>, o.count * shares, data<float>(o.maps), data<T>(images),
      data<uint8_t>(o.colormap), o.size, o.enlarged, shares, o.image_strides, o.picture_strides,
      static_cast<float>(alpha), mutable_data<uint8_t>(o.pictures));
}

Tensor overlay(const Tensor& images, const Tensor& maps, const Tensor& colormap, double alpha) {
  const OverlayOperands o(images, maps, colormap, alpha);
  const Launch launch(images);
  if (o.pictures.numel() == 0) return o.pictures;
  if (o.is_uint8) {
    run<uint8_t>(launch, o, images, alpha);
  } else {
    dispatch(images.scalar_type(), [&](auto element) {
      run<decltype(element)>(launch, o, images, alpha);
    });
  }
  return o.pictures;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CUDA, m) {
  m.impl("overlay", TORCH_BOX(&overlay));
}

}  // namespace fastcam::cuda
