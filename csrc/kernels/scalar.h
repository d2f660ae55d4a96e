// Element types as they are stored, and the arithmetic that they are computed in.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/platform.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace fastcam {

struct float16 {
  uint16_t bits;
};

struct bfloat16 {
  uint16_t bits;
};

template <class T>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};
// float for the 16 and 32 bit types, double for double
template <class T>
using arithmetic_t = typename Arithmetic<T>::type;

FASTCAM_HOST_DEVICE float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

FASTCAM_HOST_DEVICE uint32_t bits_from_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

FASTCAM_HOST_DEVICE float load(float value) {
  return value;
}
FASTCAM_HOST_DEVICE double load(double value) {
  return value;
}
FASTCAM_HOST_DEVICE float load(bfloat16 value) {
  return float_from_bits(uint32_t{value.bits} << 16);
}

FASTCAM_HOST_DEVICE float load(float16 value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  // Exponent and mantissa moved to their places in a float are the value times 2^-112, subnormals too;
  // what lands at 2^16 or above was Inf or NaN.
  const uint32_t magnitude = uint32_t{value.bits & 0x7fffu} << 13;
  const float scaled = float_from_bits(magnitude) * 0x1p112f;
  const uint32_t special = scaled >= 0x1p16f ? 0x7f800000u : 0u;
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
  return float_from_bits(bits_from_float(scaled) | special | sign);
#endif
}

// 1 / value to within 1 ulp for magnitudes from 2^-126 to 2^126
FASTCAM_HOST_DEVICE float reciprocal(float value) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
#else
  return 1 / value;
#endif
}

// Minimum and maximum that carry NaN on
template <class F>
FASTCAM_HOST_DEVICE F minimum(F a, F b) {
  return b < a || b != b ? b : a;
}
template <class F>
FASTCAM_HOST_DEVICE F maximum(F a, F b) {
  return b > a || b != b ? b : a;
}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
template <>
FASTCAM_HOST_DEVICE float minimum(float a, float b) {
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}
template <>
FASTCAM_HOST_DEVICE float maximum(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}
#endif

// A value, which stays if it is NaN, within a bound that is not
template <class F>
FASTCAM_HOST_DEVICE F lesser(F value, F bound) {
#if defined(__CUDA_ARCH__)
  return minimum(value, bound);
#else
  return value > bound ? bound : value;
#endif
}
template <class F>
FASTCAM_HOST_DEVICE F greater(F value, F bound) {
#if defined(__CUDA_ARCH__)
  return maximum(value, bound);
#else
  return value < bound ? bound : value;
#endif
}

// Within [0, 1]; not of NaN
FASTCAM_HOST_DEVICE float saturated(float value) {
#if defined(__CUDA_ARCH__)
  return __saturatef(value);
#else
  return value < 0 ? 0 : value > 1 ? 1 : value;
#endif
}
FASTCAM_HOST_DEVICE double saturated(double value) {
  return value < 0 ? 0 : value > 1 ? 1 : value;
}

// The upper 32 bits of a product
FASTCAM_HOST_DEVICE uint32_t high_product(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  return __umulhi(a, b);
#else
  return static_cast<uint32_t>(uint64_t{a} * b >> 32);
#endif
}

// The nearest value of type T, ties to even.
template <class T>
FASTCAM_HOST_DEVICE T store(arithmetic_t<T> value) {
  return value;
}

template <>
FASTCAM_HOST_DEVICE bfloat16 store<bfloat16>(float value) {
  const uint32_t bits = bits_from_float(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<uint16_t>(value != value ? 0x7fc0u : rounded)};
}

template <>
FASTCAM_HOST_DEVICE float16 store<float16>(float value) {
#if defined(__CUDA_ARCH__)
  return {__half_as_ushort(__float2half_rn(value))};
#else
  const uint32_t bits = bits_from_float(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  // 0x38000000: the difference of the exponents' biases
  uint32_t half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // below 2^-14: 0.5 has the spacing of half's subnormals, so adding it rounds to them
  if (magnitude < 0x38800000u)
    half = bits_from_float(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  if (magnitude >= 0x477ff000u) half = 0x7c00u;
  if (magnitude > 0x7f800000u) half = 0x7e00u;
  return {static_cast<uint16_t>(half | ((bits >> 16) & 0x8000u))};
#endif
}

}  // namespace fastcam
