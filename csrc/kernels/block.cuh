// What the threads of a block, kLanes x kWarps of them, do together: reductions, in which all take part, and
// accesses of 16 bytes.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/device.cuh"
#include "kernels/plan.h"
#include "kernels/platform.h"
#include "kernels/scalar.h"

namespace fastcam {

// This thread's terms of kCount sums: value(first, j) + value(first + stride, j) + ... up to `count`. Chunks
// of them are added up in double: long sums lose nothing, short ones pay nothing.
template <int kCount, class F, class Value>
__device__ void strided_sums(
    int64_t first, int64_t stride, int64_t count, const Value& value, F (&sums)[kCount]) {
  constexpr int kChunk = 32;
  double totals[kCount] = {};
  for (int64_t i = first; i < count;) {
    F chunk[kCount] = {};
    if (i + (kChunk - 1) * stride < count) {
#pragma unroll 2
      for (int n = 0; n < kChunk; ++n, i += stride)
#pragma unroll
        for (int j = 0; j < kCount; ++j) chunk[j] += value(i, j);
    } else {
      for (; i < count; i += stride)
#pragma unroll
        for (int j = 0; j < kCount; ++j) chunk[j] += value(i, j);
    }
#pragma unroll
    for (int j = 0; j < kCount; ++j) totals[j] += chunk[j];
  }
#pragma unroll
  for (int j = 0; j < kCount; ++j) sums[j] = static_cast<F>(totals[j]);
}

template <class F, class Value>
__device__ F strided_sum(int64_t first, int64_t stride, int64_t count, const Value& value) {
  F sum[1];
  strided_sums(first, stride, count, [&](int64_t i, int) { return value(i); }, sum);
  return sum[0];
}

// The sum over the lanes of a warp, in every lane.
template <class F>
__device__ F sum_lanes(F value) {
  for (int offset = kLanes / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// The sum over the warps of what a lane has, in that lane of every warp.
template <class F>
__device__ F sum_warps(F value) {
  auto& shared = static_memory<struct OfSums, F, kThreads>();
  shared[threadIdx.y * kLanes + threadIdx.x] = value;
  __syncthreads();
  F sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += shared[warp * kLanes + threadIdx.x];
  __syncthreads();
  return sum;
}

// Minimum and maximum that carry NaN on.
template <class F>
struct Extremes {
  F low, high;

  FASTCAM_HOST_DEVICE void include(F other_low, F other_high) {
    low = minimum(low, other_low);
    high = maximum(high, other_high);
  }
};

// The extremes over the block, in every thread.
template <class F>
__device__ Extremes<F> block_extremes(Extremes<F> extremes) {
  for (int offset = kLanes / 2; offset > 0; offset /= 2)
    extremes.include(
        __shfl_xor_sync(0xffffffffu, extremes.low, offset),
        __shfl_xor_sync(0xffffffffu, extremes.high, offset));
  auto& low = static_memory<struct Low, F, kWarps>();
  auto& high = static_memory<struct High, F, kWarps>();
  if (threadIdx.x == 0) {
    low[threadIdx.y] = extremes.low;
    high[threadIdx.y] = extremes.high;
  }
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) extremes.include(low[warp], high[warp]);
  __syncthreads();
  return extremes;
}

// This thread's number in the block
__device__ inline int thread_number() {
  return threadIdx.y * kLanes + threadIdx.x;
}

// Up to 16 bytes are moved at once: as many as divide the size.
constexpr int moved_at_once(int bytes) {
  return (bytes & -bytes) < 16 ? bytes & -bytes : 16;
}

// Neighbouring values that are moved together
template <class T, int kCount>
struct alignas(moved_at_once(sizeof(T) * kCount)) Pack {
  T values[kCount];
};

// kCount aligned values for arithmetic, of which bfloat16 comes by words: an instruction for each
template <class T, int kCount>
__device__ void load_values(const T* source, arithmetic_t<T> (&values)[kCount]) {
  if constexpr (std::is_same_v<T, bfloat16> && kCount % 2 == 0) {
    const auto words = *reinterpret_cast<const Pack<uint32_t, kCount / 2>*>(source);
#pragma unroll
    for (int j = 0; j < kCount / 2; ++j) {
      values[2 * j] = float_from_bits(words.values[j] << 16);
      values[2 * j + 1] = float_from_bits(words.values[j] & 0xffff0000u);
    }
  } else {
    const auto pack = *reinterpret_cast<const Pack<T, kCount>*>(source);
#pragma unroll
    for (int j = 0; j < kCount; ++j) values[j] = load(pack.values[j]);
  }
}

// Values in 16 bytes
template <class T>
constexpr int kVector = 16 / sizeof(T);

template <int kBytes = 16>
__device__ inline bool aligned(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % kBytes == 0;
}

// Up to kCount values, at once if they are `packed`: all of them, and aligned. The rest is left as it is.
template <class T, int kCount>
__device__ void load_pack(bool packed, const T* source, int count, Pack<T, kCount>& pack) {
  if (packed) {
    pack = *reinterpret_cast<const Pack<T, kCount>*>(source);
  } else {
#pragma unroll
    for (int j = 0; j < kCount; ++j)
      if (j < count) pack.values[j] = source[j];
  }
}
template <class T, int kCount>
__device__ void load_pack(const T* source, int count, Pack<T, kCount>& pack) {
  const bool packed = count == kCount && aligned<alignof(Pack<T, kCount>)>(source);
  load_pack(packed, source, count, pack);
}

template <class T, int kCount>
__device__ void store_pack(bool packed, T* target, int count, const Pack<T, kCount>& pack) {
  if (packed) {
    *reinterpret_cast<Pack<T, kCount>*>(target) = pack;
  } else {
#pragma unroll
    for (int j = 0; j < kCount; ++j)
      if (j < count) target[j] = pack.values[j];
  }
}
template <class T, int kCount>
__device__ void store_pack(T* target, int count, const Pack<T, kCount>& pack) {
  const bool packed = count == kCount && aligned<alignof(Pack<T, kCount>)>(target);
  store_pack(packed, target, count, pack);
}

// f(first, count) for the packs of `total` values that this block takes: `share` of `shares`
template <int kCount, class Function>
__device__ void for_packs(int64_t total, int64_t share, int64_t shares, const Function& f) {
  const int64_t stride = shares * kThreads * kCount;
  for (int64_t i = (share * kThreads + thread_number()) * kCount; i < total; i += stride)
    f(i, static_cast<int>(total - i < kCount ? total - i : kCount));
}

}  // namespace fastcam
