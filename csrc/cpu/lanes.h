// Vectors of one width on every instruction set, so that a sum has one order and the same bits everywhere.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

#include "cpu/parallel.h"
#include "kernels/scalar.h"

// All that passes vectors is inlined: no two files have to agree on how.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace fastcam::cpu {

constexpr int64_t kLaneBytes = 32;
template <class F>
inline constexpr int64_t kLanes = kLaneBytes / sizeof(F);

template <class F>
struct LanesOf {
  typedef F type __attribute__((vector_size(kLaneBytes)));
};
template <class F>
using Lanes = typename LanesOf<F>::type;

template <class F>
FASTCAM_HOST_DEVICE Lanes<F> lanes_from(const F* source) {
  Lanes<F> lanes;
  memcpy(&lanes, source, sizeof(lanes));
  return lanes;
}

template <class F>
FASTCAM_HOST_DEVICE void store_lanes(const Lanes<F>& lanes, F* target) {
  memcpy(target, &lanes, sizeof(lanes));
}

// 16-bit numbers widened by the instructions that x86-64-v3 has for it: inlined where code is compiled for
// that, elsewhere a call that is never made.
#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("arch=x86-64-v3"))) inline void widen(
    const float16* source, Lanes<float>& lanes) {
  lanes = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
}
__attribute__((target("arch=x86-64-v3"))) inline void widen(
    const bfloat16* source, Lanes<float>& lanes) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
  lanes = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
#else
template <class T>
void widen(const T*, Lanes<float>&) {}
#endif

// source[0], source[stride], ...
template <class Wide, class T, class Stride>
FASTCAM_HOST_DEVICE Lanes<arithmetic_t<T>> load_lanes(Wide, const T* source, Stride stride) {
  using F = arithmetic_t<T>;
  constexpr bool contiguous = std::is_same_v<Stride, std::integral_constant<int64_t, 1>>;
  Lanes<F> lanes;
  if constexpr (contiguous && std::is_same_v<T, F>) {
    lanes = lanes_from(source);
  } else if constexpr (contiguous && Wide::value && sizeof(T) == 2) {
    widen(source, lanes);
  } else {
    for (int64_t l = 0; l < kLanes<F>; ++l) lanes[l] = load(source[l * stride]);
  }
  return lanes;
}

template <class F>
struct LaneArray {
  F at[kLanes<F>];
  FASTCAM_HOST_DEVICE explicit LaneArray(const Lanes<F>& lanes) { store_lanes<F>(lanes, at); }
};

// f(a, b, ...), lane by lane
template <class F, class Function, class... Operands>
FASTCAM_HOST_DEVICE Lanes<F> each_lane(const Function& f, const Operands&... operands) {
  return [&](const auto&... arrays) FASTCAM_INLINED {
    F results[kLanes<F>];
#pragma GCC unroll 1  // to be vectorised, not unrolled
    for (int64_t l = 0; l < kLanes<F>; ++l) results[l] = f(arrays.at[l]...);
    return lanes_from(results);
  }(LaneArray<F>(operands)...);
}

// By halves: lanes 0 and 4, 1 and 5...; then 0 and 2, 1 and 3; then 0 and 1
template <class F>
FASTCAM_HOST_DEVICE F sum_of_lanes(const Lanes<F>& x) {
  typedef F Half __attribute__((vector_size(kLaneBytes / 2)));
  Half low, high;
  memcpy(&low, &x, sizeof(low));
  memcpy(&high, reinterpret_cast<const char*>(&x) + sizeof(low), sizeof(high));
  const Half sums = low + high;
  if constexpr (kLanes<F> == 4)
    return sums[0] + sums[1];
  else
    return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

// The sum of lanes_at(i), lanes for i and its followers, and of value_at(i) for the last few, i < count.
template <class F, class LanesAt, class ValueAt>
FASTCAM_HOST_DEVICE F sum(int64_t count, const LanesAt& lanes_at, const ValueAt& value_at) {
  constexpr int64_t n = kLanes<F>;
  Lanes<F> a{}, b{}, c{}, d{};
  int64_t i = 0;
  for (; i + 4 * n <= count; i += 4 * n) {
    a += lanes_at(i), b += lanes_at(i + n);
    c += lanes_at(i + 2 * n), d += lanes_at(i + 3 * n);
  }
  if (i + 2 * n <= count) {
    a += lanes_at(i), b += lanes_at(i + n);
    i += 2 * n;
  }
  if (i + n <= count) {
    c += lanes_at(i);
    i += n;
  }
  F rest = 0;
#pragma GCC unroll 1
  for (; i < count; ++i) rest += value_at(i);
  return sum_of_lanes<F>((a + b) + (c + d)) + rest;
}

}  // namespace fastcam::cpu
