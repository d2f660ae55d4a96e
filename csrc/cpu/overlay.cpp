#include "cpu/enlarge.h"
#include "kernels/blend.h"
#include "operands/pictures.h"
#include "operands/tensors.h"

namespace fastcam::cpu {

// The colours have a byte to spare, so that one 32-bit access moves each.
FASTCAM_HOST_DEVICE uint8_t color_channel(uint32_t color, int64_t channel) {
  return static_cast<uint8_t>(color >> (8 * channel));
}

// indices[x] = the colour of heat[x]
FASTCAM_MULTIVERSION inline void index_row(
    const float* heat, int64_t width, int32_t* __restrict indices) {
#pragma omp simd
  for (int64_t x = 0; x < width; ++x) indices[x] = color_index(heat[x]);
}

template <class T>
FASTCAM_MULTIVERSION void blend_values(
    float alpha, const uint8_t* colors, const T* image, int64_t count,
    uint8_t* __restrict picture) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) picture[i] = blended(alpha, colors[i], level(image[i]));
}

template <class T>
FASTCAM_MULTIVERSION void blend_plane(
    float alpha, const uint32_t* colors, int64_t channel, const T* image, int64_t count,
    uint8_t* __restrict picture) {
#pragma omp simd
  for (int64_t x = 0; x < count; ++x)
    picture[x] = blended(alpha, color_channel(colors[x], channel), level(image[x]));
}

// One row of one picture, its channels interleaved (HWC) or apart (CHW).
template <class T>
class RowBlender {
 public:
  RowBlender(const uint8_t* colormap, float alpha, int64_t width)
      : alpha_(alpha), width_(width), indices_(width), row_(width + 1) {
    for (int64_t i = 0; i < 256; ++i) {
      const uint8_t* color = colormap + 3 * i;
      memcpy(colors_[i], color, 3);
      numbers_[i] = color[0] | color[1] << 8 | color[2] << 16;
    }
  }

  void blend(
      const float* heat, const T* image, const VolumeStrides& is, uint8_t* picture,
      const VolumeStrides& ps) {
    const int32_t* indices = indices_.data();
    const int64_t width = width_;
    index_row(heat, width, indices_.data());
    if (ps.channel == 1 && is.channel == 1 && is.width == 3) {
      // each colour's spare byte is overwritten by the next
      uint8_t* colors = reinterpret_cast<uint8_t*>(row_.data());
      for (int64_t x = 0; x < width; ++x) memcpy(colors + 3 * x, colors_[indices[x]], 4);
      blend_values(alpha_, colors, image, 3 * width, picture);
      return;
    }
    for (int64_t x = 0; x < width; ++x) row_[x] = numbers_[indices[x]];
    for (int64_t c = 0; c < 3; ++c) {
      const T* source = image + c * is.channel;
      uint8_t* target = picture + c * ps.channel;
      if (is.width == 1 && ps.width == 1) {
        blend_plane(alpha_, row_.data(), c, source, width, target);
      } else {
        for (int64_t x = 0; x < width; ++x)
          target[x * ps.width] =
              blended(alpha_, color_channel(row_[x], c), level(source[x * is.width]));
      }
    }
  }

 private:
  float alpha_;
  int64_t width_;
  uint8_t colors_[256][4] = {};  // in memory's order, for interleaved pictures
  uint32_t numbers_[256];        // for planes
  std::vector<int32_t> indices_;
  std::vector<uint32_t> row_;
};

template <class T>
void run(const OverlayOperands& o, const Tensor& images, double alpha) {
  const SampleTables<float> tables(o.size, o.enlarged);
  const VolumeStrides &is = o.image_strides, &ps = o.picture_strides;
  const T* source = data<T>(images);
  const uint8_t* colormap = data<uint8_t>(o.colormap);
  uint8_t* target = mutable_data<uint8_t>(o.pictures);
  const int64_t width = o.enlarged.width;
  for_row_shares(
      tables, data<float>(o.maps), o.count,
      [&](int64_t n, EnlargedRows<float, float>& enlarged, int64_t first, int64_t last) {
        std::vector<float> heat(width);
        RowBlender<T> blender(colormap, static_cast<float>(alpha), width);
        for (int64_t y = first; y < last; ++y) {
          enlarged.row(0, y, heat.data());
          blender.blend(
              heat.data(), source + n * is.image + y * is.height, is,
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
