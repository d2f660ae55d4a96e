#include "cpu/enlarge.h"
#include "kernels/blend.h"
#include "operands/pictures.h"
#include "operands/tensors.h"

namespace fastcam::cpu {

// opacity color + (1 - opacity) image, rounded, of which tables hold what depends on the color
template <class T>
struct Blend {
  using Value = float;

  static Value entry(float opacity, uint8_t color) { return opacity * color + 0.5f; }
  static Value rest(float opacity) { return 1 - opacity; }
  FASTCAM_HOST_DEVICE static uint8_t blended(Value entry, Value rest, T image) {
    return static_cast<uint8_t>(static_cast<int32_t>(entry + rest * level(image)));
  }
};

// Fixed-point numbers, so that 16 bits are enough: right to 1 / 128 before it is rounded, and exact
// for opacities of 0 and 1
template <>
struct Blend<uint8_t> {
  using Value = uint16_t;

  static Value entry(float opacity, uint8_t color) {
    return static_cast<Value>(opacity * color * 256 + 128.5f);
  }
  static Value rest(float opacity) { return static_cast<Value>((1 - opacity) * 65535 + 0.5f); }
  FASTCAM_HOST_DEVICE static uint8_t blended(Value entry, Value rest, uint8_t image) {
    const Value share = static_cast<uint32_t>(rest) * static_cast<Value>(image << 8) >> 16;
    return static_cast<uint8_t>(static_cast<Value>(entry + share) >> 8);
  }
};

// indices[x] = the colour of heat[x]
FASTCAM_MULTIVERSION inline void index_row(
    const float* heat, int64_t width, int32_t* __restrict indices) {
#pragma omp simd
  for (int64_t x = 0; x < width; ++x) indices[x] = color_index(heat[x]);
}

template <class T, class Value = typename Blend<T>::Value>
FASTCAM_MULTIVERSION void blend_values(
    const Value* entries, const Value* rests, const T* image, int64_t count,
    uint8_t* __restrict picture) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i)
    picture[i] = Blend<T>::blended(entries[i], rests[i], image[i]);
}

// The channels of a color are the bytes of a number.
FASTCAM_HOST_DEVICE uint8_t channel_of(uint32_t color, int64_t channel) {
  return static_cast<uint8_t>(color >> (8 * channel));
}

template <class T>
FASTCAM_MULTIVERSION void blend_plane(
    const float* opacities, const uint32_t* colors, int64_t channel, const T* image, int64_t count,
    uint8_t* __restrict picture) {
#pragma omp simd
  for (int64_t x = 0; x < count; ++x)
    picture[x] = blended(opacities[x], channel_of(colors[x], channel), level(image[x]));
}

// A part of one row of one picture, its channels interleaved (HWC) or apart (CHW).
template <class T>
class RowBlender {
  using Value = typename Blend<T>::Value;

 public:
  static constexpr int64_t kWidth = 512;  // all that a part needs stays in the first cache

  RowBlender(const uint8_t* colormap, const float* opacities) {
    for (int64_t i = 0; i < 256; ++i) {
      const uint8_t* color = colormap + 3 * i;
      const float opacity = to_unit(opacities[i]);
      colors_[i] = color[0] | color[1] << 8 | color[2] << 16;
      opacities_[i] = opacity;
      for (int64_t c = 0; c < 3; ++c) entries_[i][c] = Blend<T>::entry(opacity, color[c]);
      std::fill_n(rests_[i], 4, Blend<T>::rest(opacity));
    }
  }

  void blend(
      int64_t width, const float* heat, const T* image, const VolumeStrides& is, uint8_t* picture,
      const VolumeStrides& ps) {
    int32_t indices[kWidth];
    index_row(heat, width, indices);
    if (ps.channel == 1 && is.channel == 1 && is.width == 3) {
      // the fourth value of each is overwritten by the next
      Value entries[3 * kWidth + 1], rests[3 * kWidth + 1];
      for (int64_t x = 0; x < width; ++x) {
        memcpy(entries + 3 * x, entries_[indices[x]], 4 * sizeof(Value));
        memcpy(rests + 3 * x, rests_[indices[x]], 4 * sizeof(Value));
      }
      blend_values(entries, rests, image, 3 * width, picture);
      return;
    }
    uint32_t colors[kWidth];
    float opacities[kWidth];
    for (int64_t x = 0; x < width; ++x) colors[x] = colors_[indices[x]];
    for (int64_t x = 0; x < width; ++x) opacities[x] = opacities_[indices[x]];
    for (int64_t c = 0; c < 3; ++c) {
      const T* source = image + c * is.channel;
      uint8_t* target = picture + c * ps.channel;
      if (is.width == 1 && ps.width == 1) {
        blend_plane(opacities, colors, c, source, width, target);
      } else {
        for (int64_t x = 0; x < width; ++x)
          target[x * ps.width] =
              blended(opacities[x], channel_of(colors[x], c), level(source[x * is.width]));
      }
    }
  }

 private:
  uint32_t colors_[256];  // for planes
  float opacities_[256];
  Value entries_[256][4] = {}, rests_[256][4];  // for interleaved channels
};

template <class T>
void run(const OverlayOperands& o, const Tensor& images) {
  const SampleTables<float> tables(o.size, o.enlarged);
  const VolumeStrides &is = o.image_strides, &ps = o.picture_strides;
  const T* source = data<T>(images);
  const uint8_t* colormap = data<uint8_t>(o.colormap);
  const float* opacities = data<float>(o.opacities);
  uint8_t* target = mutable_data<uint8_t>(o.pictures);
  const int64_t width = o.enlarged.width;
  for_row_shares(
      tables, data<float>(o.maps), o.count,
      [&](int64_t n, EnlargedRows<float, float>& enlarged, int64_t first, int64_t last) {
        std::vector<float> heat(width);
        RowBlender<T> blender(colormap, opacities);
        for (int64_t y = first; y < last; ++y) {
          enlarged.row(0, y, heat.data());
          for (int64_t x = 0; x < width; x += blender.kWidth)
            blender.blend(
                std::min(width - x, blender.kWidth), heat.data() + x,
                source + n * is.image + y * is.height + x * is.width, is,
                target + n * ps.image + y * ps.height + x * ps.width, ps);
        }
      });
}

Tensor overlay(
    const Tensor& images, const Tensor& maps, const Tensor& colormap, const Tensor& opacities) {
  const OverlayOperands o(images, maps, colormap, opacities);
  if (o.pictures.numel() == 0) return o.pictures;
  if (o.is_uint8) {
    run<uint8_t>(o, images);
  } else {
    dispatch(images.scalar_type(), [&](auto element) { run<decltype(element)>(o, images); });
  }
  return o.pictures;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CPU, m) {
  m.impl("overlay", TORCH_BOX(&overlay));
}

}  // namespace fastcam::cpu
