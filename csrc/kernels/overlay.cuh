// Maps over pictures, interpolated, coloured and blended; `shares` blocks a picture.
#pragma once

#include "kernels/blend.h"
#include "kernels/enlarge.cuh"

namespace fastcam {

// opacity color + (1 - opacity) image, rounded, of which tables hold what depends on the color
template <class T>
struct Blend {
  using Entry = float;

  __device__ static Entry rest(float opacity) { return 1 - opacity; }
  __device__ static Entry entry(float opacity, uint8_t color) { return opacity * color + 0.5f; }
  __device__ static uint8_t blended(Entry entry, Entry rest, T image) {
    return static_cast<uint8_t>(static_cast<int32_t>(entry + rest * level(image)));
  }
};

// Fixed-point numbers of 24 bits behind the point: right to 255 / 2^25 before it is rounded
template <>
struct Blend<uint8_t> {
  using Entry = uint32_t;
  static constexpr uint32_t kOne = 1 << 24;

  __device__ static Entry fixed(float opacity) {
    return static_cast<uint32_t>(opacity * kOne + 0.5f);
  }
  __device__ static Entry rest(float opacity) { return kOne - fixed(opacity); }
  __device__ static Entry entry(float opacity, uint8_t color) {
    return fixed(opacity) * color + kOne / 2;
  }
  __device__ static uint8_t blended(Entry entry, Entry rest, uint8_t image) {
    return static_cast<uint8_t>((entry + rest * image) / kOne);
  }
};

// `order` is that of both the images and the pictures.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) overlay_kernel(
    MapSource<float> source, const T* images, const uint8_t* colormap, const float* opacities,
    const __grid_constant__ Enlargement<float> e, Shares shares, ChannelOrder order,
    VolumeStrides is, VolumeStrides ps, uint8_t* pictures) {
  constexpr int kColors = 256;
  using Entry = typename Blend<T>::Entry;
  auto& table = static_memory<struct Colors, Entry, 4 * kColors>();  // (3, 256), rests (256)
  const Entry* rests = table + 3 * kColors;
  for (int i = thread_number(); i < kColors; i += kThreads) {
    const float opacity = to_unit(opacities[i]);
    for (int c = 0; c < 3; ++c)
      table[c * kColors + i] = Blend<T>::entry(opacity, colormap[3 * i + c]);
    table[3 * kColors + i] = Blend<T>::rest(opacity);
  }
  const auto blended = [&](int c, int32_t index, T image) {
    return Blend<T>::blended(table[c * kColors + index], rests[index], image);
  };
  // the table is read behind for_spans' barrier
  const Share share(shares, e, blockIdx.x);
  const EnlargedMap<float> map{small_map(source, e, share.map), source.staged, e};
  images += share.map * is.image;
  pictures += share.map * ps.image;
  const bool planar = order == ChannelOrder::kPlanar;
  const bool packed = rows_packed(images, planar ? is.channel : 0, e.width.out) &&
                      rows_packed(pictures, planar ? ps.channel : 0, e.width.out);
  map.template for_spans<false>(share.area, [&](const Span& span, const float (&heat)[kColumns]) {
    int32_t indices[kColumns];
#pragma unroll
    for (int j = 0; j < kColumns; ++j) indices[j] = color_index(heat[j]);
    const int64_t first = share.first + span.first;
    const bool whole = packed && span.count == kColumns;
    if (planar) {
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        Pack<T, kColumns> image{};
        Pack<uint8_t, kColumns> picture;
        load_pack(whole, images + c * is.channel + first, span.count, image);
#pragma unroll
        for (int j = 0; j < kColumns; ++j)
          picture.values[j] = blended(c, indices[j], image.values[j]);
        store_pack(whole, pictures + c * ps.channel + first, span.count, picture);
      }
    } else if (order == ChannelOrder::kInterleaved) {
#pragma unroll
      for (int i = 0; i < 3 * kColumns; i += kColumns) {
        Pack<T, kColumns> image{};
        Pack<uint8_t, kColumns> picture;
        load_pack(whole, images + 3 * first + i, 3 * span.count - i, image);
#pragma unroll
        for (int j = 0; j < kColumns; ++j)
          picture.values[j] = blended((i + j) % 3, indices[(i + j) / 3], image.values[j]);
        store_pack(whole, pictures + 3 * first + i, 3 * span.count - i, picture);
      }
    } else {
      const int64_t from = offset_at(is, e, span), to = offset_at(ps, e, span);
#pragma unroll 1
      for (int c = 0; c < 3; ++c) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j)
          if (j < span.count)
            pictures[to + c * ps.channel + j * ps.width] =
                blended(c, indices[j], images[from + c * is.channel + j * is.width]);
      }
    }
  });
}

}  // namespace fastcam
