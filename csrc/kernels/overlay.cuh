// Maps over pictures, interpolated, coloured and blended; `shares` blocks a picture.
#pragma once

#include "kernels/blend.h"
#include "kernels/enlarge.cuh"

namespace fastcam {

// alpha color + (1 - alpha) image, rounded, of which a table holds what depends on the color
template <class T>
struct Blend {
  using Entry = float;
  float rest;

  __device__ explicit Blend(float alpha) : rest(1 - alpha) {}
  __device__ Entry entry(float alpha, uint8_t color) const { return alpha * color + 0.5f; }
  __device__ uint8_t operator()(Entry entry, T image) const {
    return static_cast<uint8_t>(static_cast<int32_t>(entry + rest * level(image)));
  }
};

// Fixed-point numbers of 24 bits behind the point: right to 255 / 2^25 before it is rounded
template <>
struct Blend<uint8_t> {
  using Entry = uint32_t;
  static constexpr uint32_t kOne = 1 << 24;
  uint32_t rest;

  __device__ explicit Blend(float alpha) : rest(kOne - fixed(alpha)) {}
  __device__ static uint32_t fixed(float alpha) {
    return static_cast<uint32_t>(alpha * kOne + 0.5f);
  }
  __device__ Entry entry(float alpha, uint8_t color) const {
    return fixed(alpha) * color + kOne / 2;
  }
  __device__ uint8_t operator()(Entry entry, uint8_t image) const {
    return static_cast<uint8_t>((entry + rest * image) / kOne);
  }
};

// `order` is that of both the images and the pictures.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) overlay_kernel(
    MapSource<float> source, const T* images, const uint8_t* colormap,
    const __grid_constant__ Enlargement<float> e, Shares shares, ChannelOrder order,
    VolumeStrides is, VolumeStrides ps, float alpha, uint8_t* pictures) {
  constexpr int kColors = 256;
  const Blend<T> blend(alpha);
  auto& colors = static_memory<struct Colors, typename Blend<T>::Entry, 3 * kColors>();  // (3, 256)
  for (int i = thread_number(); i < 3 * kColors; i += kThreads)
    colors[i % 3 * kColors + i / 3] =
        blend.entry(alpha, colormap[i]);  // read behind for_spans' barrier
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
          picture.values[j] = blend(colors[c * kColors + indices[j]], image.values[j]);
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
          picture.values[j] =
              blend(colors[(i + j) % 3 * kColors + indices[(i + j) / 3]], image.values[j]);
        store_pack(whole, pictures + 3 * first + i, 3 * span.count - i, picture);
      }
    } else {
      const int64_t from = offset_at(is, e, span), to = offset_at(ps, e, span);
#pragma unroll 1
      for (int c = 0; c < 3; ++c) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j)
          if (j < span.count)
            pictures[to + c * ps.channel + j * ps.width] = blend(
                colors[c * kColors + indices[j]], images[from + c * is.channel + j * is.width]);
      }
    }
  });
}

}  // namespace fastcam
