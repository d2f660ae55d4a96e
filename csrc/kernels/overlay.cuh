// Maps over pictures, interpolated, coloured and blended; `shares` blocks a picture.
#pragma once

#include "kernels/blend.h"
#include "kernels/enlarge.cuh"

namespace fastcam {

// 16 colours' numbers of 8 bits, in registers although a loop fills them
class ColorIndices {
 public:
  // Behind those that are there; the first of 16 ends up in front.
  __device__ void push(uint32_t index) {
    words_[0] = words_[0] >> 8 | words_[1] << 24;
    words_[1] = words_[1] >> 8 | words_[2] << 24;
    words_[2] = words_[2] >> 8 | words_[3] << 24;
    words_[3] = words_[3] >> 8 | index << 24;
  }

  __device__ uint32_t operator[](int j) const { return words_[j / 4] >> (j % 4 * 8) & 255; }

 private:
  uint32_t words_[4] = {};
};

// `order` is that of both the images and the pictures.
template <class T>
__global__ void __launch_bounds__(kThreads) overlay_kernel(
    MapSource<float> source, const T* images, const uint8_t* colormap, Enlargement<float> e,
    int64_t shares, ChannelOrder order, VolumeStrides is, VolumeStrides ps, float alpha,
    uint8_t* pictures) {
  constexpr int kCount = kVector<uint8_t>;
  constexpr int kColors = 256;
  auto& colors = static_memory<struct Colors, uint8_t, 3 * kColors>();  // (3, 256)
  for (int i = thread_number(); i < 3 * kColors; i += kThreads)
    colors[i % 3 * kColors + i / 3] = colormap[i];
  __syncthreads();
  const int64_t number = blockIdx.x / shares, share = blockIdx.x % shares;
  const EnlargedMap<float> map = enlarged_map(source, e, number);
  images += number * is.image;
  pictures += number * ps.image;
  for_packs<kCount>(e.positions(), share, shares, [&](int64_t first, int count) {
    ColorIndices indices;
    Walk<float> walk(map, first);
    for (int j = 0; j < kCount; ++j) indices.push(color_index(walk.next()));
    if (order == ChannelOrder::kPlanar) {
      for (int c = 0; c < 3; ++c) {
        Pack<T, kCount> image{};
        Pack<uint8_t, kCount> picture;
        load_pack(images + c * is.channel + first, count, image);
#pragma unroll
        for (int j = 0; j < kCount; ++j)
          picture.values[j] =
              blended(alpha, colors[c * kColors + indices[j]], level(image.values[j]));
        store_pack(pictures + c * ps.channel + first, count, picture);
      }
    } else if (order == ChannelOrder::kInterleaved) {
      Pack<T, 3 * kCount> image{};
      Pack<uint8_t, 3 * kCount> picture;
      load_pack(images + 3 * first, 3 * count, image);
#pragma unroll
      for (int j = 0; j < 3 * kCount; ++j)
        picture.values[j] =
            blended(alpha, colors[j % 3 * kColors + indices[j / 3]], level(image.values[j]));
      store_pack(pictures + 3 * first, 3 * count, picture);
    } else {
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        if (j >= count) continue;
        const Position p = position_at(e, first + j);
        const int64_t from = offset_at(is, p), to = offset_at(ps, p);
        for (int c = 0; c < 3; ++c)
          pictures[to + c * ps.channel] = blended(
              alpha, colors[c * kColors + indices[j]], level(images[from + c * is.channel]));
      }
    }
  });
}

}  // namespace fastcam
