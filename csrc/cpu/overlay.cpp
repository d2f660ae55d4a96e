#include "cpu/enlarge.h"
#include "kernels/blend.h"
#include "operands.h"

namespace fastcam::cpu {

// One row of one picture, its channels interleaved (HWC) or apart (CHW). `colors` is a scratch row laid
// out as the picture.
template <class T>
FASTCAM_MULTIVERSION void blend_row(
    const float* heat, const uint8_t* colormap, float alpha, int64_t width, const T* image,
    const VolumeStrides& is, uint8_t* __restrict colors, uint8_t* __restrict picture,
    const VolumeStrides& ps) {
  const bool interleaved = ps.channel == 1;
  const int64_t color_channel = interleaved ? 1 : width, color_step = interleaved ? 3 : 1;
  for (int64_t x = 0; x < width; ++x) {
    const uint8_t* color = colormap + 3 * color_index(heat[x]);
    for (int64_t c = 0; c < 3; ++c) colors[c * color_channel + x * color_step] = color[c];
  }
  // runs of contiguous values: the whole row of an interleaved picture, else a channel at a time
  const bool whole_row = interleaved && is.channel == 1 && is.width == 3;
  const int64_t runs = whole_row ? 1 : 3, length = whole_row ? 3 * width : width;
  for (int64_t c = 0; c < runs; ++c) {
    const T* source = image + c * is.channel;
    uint8_t* target = picture + c * ps.channel;
    const uint8_t* color = colors + c * color_channel;
    if (whole_row || (is.width == 1 && ps.width == 1)) {
#pragma omp simd
      for (int64_t i = 0; i < length; ++i) target[i] = blended(alpha, color[i], level(source[i]));
    } else {
      for (int64_t x = 0; x < width; ++x)
        target[x * ps.width] = blended(alpha, color[x * color_step], level(source[x * is.width]));
    }
  }
}

template <class T>
void run(const OverlayOperands& o, const Tensor& images, double alpha) {
  const Axes<float> axes(o.size, o.enlarged);
  const VolumeStrides &is = o.image_strides, &ps = o.picture_strides;
  const T* source = data<T>(images);
  const uint8_t* colormap = data<uint8_t>(o.colormap);
  uint8_t* target = mutable_data<uint8_t>(o.pictures);
  const int64_t width = o.enlarged.width;
  for_row_bands(
      axes, data<float>(o.maps), o.count,
      [&](int64_t n, const EnlargedMap<float>& enlarged, int64_t first, int64_t last) {
        std::vector<float> heat(width);
        std::vector<uint8_t> colors(3 * width);
        for (int64_t y = first; y < last; ++y) {
          enlarged.row(0, y, heat.data());
          blend_row(
              heat.data(), colormap, static_cast<float>(alpha), width,
              source + n * is.image + y * is.height, is, colors.data(),
              target + n * ps.image + y * ps.height, ps);
        }
      });
}

Tensor overlay(const Tensor& images, const Tensor& maps, const Tensor& colormap, double alpha) {
  const OverlayOperands o(images, maps, colormap, alpha);
  if (o.pictures.numel() == 0) return o.pictures;
  if (o.is_uint8) {
    run<uint8_t>(o, images, alpha);
  } else {
    dispatch(images.scalar_type(), [&](auto element) { run<decltype(element)>(o, images, alpha); });
  }
  return o.pictures;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CPU, m) {
  m.impl("overlay", TORCH_BOX(&overlay));
}

}  // namespace fastcam::cpu
