// ReLU and its guided backward over `count` elements of one memory order.
#pragma once

#include "kernels/block.cuh"
#include "kernels/guided.h"

namespace fastcam {

template <class T>
__global__ void guided_relu_kernel(const T* input, int64_t count, T* result) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + thread_number(); i < count; i += step)
    result[i] = rectified(input[i]);
}

template <class T>
__global__ void guided_relu_backward_kernel(
    const T* gradient, const T* input, int64_t count, T* result) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + thread_number(); i < count; i += step)
    result[i] = guided_gradient(gradient[i], input[i]);
}

}  // namespace fastcam
