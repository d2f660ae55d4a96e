// Maps over pictures, interpolated, coloured and blended; `shares` blocks a picture.
#pragma once

#include "kernels/blend.h"
#include "kernels/enlarge.cuh"

namespace fastcam {

template <class T>
__global__ void overlay_kernel(
    const float* maps, const T* images, const uint8_t* colormap, Size size, Size enlarged,
    int64_t shares, VolumeStrides is, VolumeStrides ps, float alpha, uint8_t* pictures) {
  __shared__ uint8_t colors[256 * 3];
  for (int i = thread_number(); i < 256 * 3; i += kThreads) colors[i] = colormap[i];
  __syncthreads();
  const int64_t number = blockIdx.x / shares, share = blockIdx.x % shares;
  const EnlargedMap<float> map{maps + number * size.positions(), size, enlarged};
  for_positions(enlarged, share, shares, [&](int64_t z, int64_t y, int64_t x) {
    const uint8_t* color = colors + 3 * color_index(map.value(z, y, x));
    const int64_t from = number * is.image + y * is.height + x * is.width;
    const int64_t to = number * ps.image + y * ps.height + x * ps.width;
    for (int c = 0; c < 3; ++c)
      pictures[to + c * ps.channel] =
          blended(alpha, color[c], level(images[from + c * is.channel]));
  });
}

}  // namespace fastcam
