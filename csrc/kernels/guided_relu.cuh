// ReLU and its guided backward over `count` elements of one memory order.
#pragma once

#include "kernels/block.cuh"
#include "kernels/guided.h"

namespace fastcam {

template <class T>
__global__ void __launch_bounds__(kThreads)
    guided_relu_kernel(const T* input, int64_t count, T* result) {
  for_packs<kVector<T>>(count, blockIdx.x, gridDim.x, [&](int64_t first, int valid) {
    Pack<T, kVector<T>> x{};
    load_pack(input + first, valid, x);
#pragma unroll
    for (T& value : x.values) value = rectified(value);
    store_pack(result + first, valid, x);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    guided_relu_backward_kernel(const T* gradient, const T* input, int64_t count, T* result) {
  for_packs<kVector<T>>(count, blockIdx.x, gridDim.x, [&](int64_t first, int valid) {
    Pack<T, kVector<T>> g{}, x{};
    load_pack(gradient + first, valid, g);
    load_pack(input + first, valid, x);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) x.values[j] = guided_gradient(g.values[j], x.values[j]);
    store_pack(result + first, valid, x);
  });
}

}  // namespace fastcam
