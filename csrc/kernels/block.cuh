// The thread block of every kernel, 32 lanes x 8 rows, and its reductions. All threads of a block take
// part in each.
#pragma once

#include <cstdint>

#include "kernels/platform.h"

namespace fastcam {

constexpr int kLanes = 32, kRows = 8, kThreads = kLanes * kRows;

// This thread's share of a sum: value(first) + value(first + step) + ... up to `count`. Runs of it are
// added up in double: long sums lose nothing, short ones pay nothing.
template <class F, class Value>
__device__ F strided_sum(int64_t first, int64_t step, int64_t count, const Value& value) {
  constexpr int kRun = 32;
  double total = 0;
  for (int64_t i = first; i < count;) {
    F sum = 0;
    for (int n = 0; n < kRun && i < count; ++n, i += step) sum += value(i);
    total += sum;
  }
  return static_cast<F>(total);
}

// The sum over the lanes of a row, in every lane.
template <class F>
__device__ F sum_lanes(F value) {
  for (int offset = kLanes / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// The sum over the rows of a lane, in every row.
template <class F>
__device__ F sum_rows(F value) {
  __shared__ F shared[kRows][kLanes];
  shared[threadIdx.y][threadIdx.x] = value;
  __syncthreads();
  F sum = 0;
  for (int row = 0; row < kRows; ++row) sum += shared[row][threadIdx.x];
  __syncthreads();
  return sum;
}

// Minimum and maximum that carry NaN on.
template <class F>
struct Extremes {
  F low, high;

  FASTCAM_HOST_DEVICE void include(F other_low, F other_high) {
    low = other_low < low || other_low != other_low ? other_low : low;
    high = other_high > high || other_high != other_high ? other_high : high;
  }
};

// The extremes over the block, in every thread.
template <class F>
__device__ Extremes<F> block_extremes(Extremes<F> extremes) {
  for (int offset = kLanes / 2; offset > 0; offset /= 2)
    extremes.include(
        __shfl_xor_sync(0xffffffffu, extremes.low, offset),
        __shfl_xor_sync(0xffffffffu, extremes.high, offset));
  __shared__ F low[kRows], high[kRows];
  if (threadIdx.x == 0) {
    low[threadIdx.y] = extremes.low;
    high[threadIdx.y] = extremes.high;
  }
  __syncthreads();
  for (int row = 0; row < kRows; ++row) extremes.include(low[row], high[row]);
  __syncthreads();
  return extremes;
}

// This thread's number in the block
__device__ inline int thread_number() {
  return threadIdx.y * kLanes + threadIdx.x;
}

}  // namespace fastcam
