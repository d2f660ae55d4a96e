// What single instructions compute, as the PTX manual says, section by section.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace ptx {

// Types that C++ does not have
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class F>
using BitsOf = std::conditional_t<sizeof(F) == 8, uint64_t, uint32_t>;

// The one NaN that arithmetic results in
template <class F>
F canonical(F value) {
  if constexpr (sizeof(F) == 8) {
    return value != value ? std::bit_cast<F>(0x7fffffffffffffffu) : value;
  } else {
    return value != value ? std::bit_cast<F>(0x7fffffffu) : value;
  }
}

// .ftz: subnormal numbers are zeros of their sign
inline float flushed(float value) {
  return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value;
}

// .sat: within [0, 1], NaN is 0
template <class F>
F saturated(F value) {
  return value > 0 ? (value < 1 ? value : F(1)) : F(0);
}

// ---- integers ----

template <class T>
T shift_left(T value, uint32_t by) {
  return by >= sizeof(T) * 8 ? T(0) : static_cast<T>(value << by);
}

// Signed ones fill up with the sign.
template <class T>
T shift_right(T value, uint32_t by) {
  if (by >= sizeof(T) * 8) return value < 0 ? T(-1) : T(0);
  return static_cast<T>(value >> by);
}

template <class T>
T multiply_high(T a, T b) {
  if constexpr (sizeof(T) == 8) {
    using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return static_cast<T>(static_cast<Wide>(a) * b >> 64);
  } else {
    using Wide = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
    return static_cast<T>(static_cast<Wide>(a) * b >> (sizeof(T) * 8));
  }
}

// The divisor is not 0.
template <class T>
T quotient(T a, T b) {
  if (std::is_signed_v<T> && b == T(-1)) return static_cast<T>(0 - std::make_unsigned_t<T>(a));
  return static_cast<T>(a / b);
}
template <class T>
T remainder(T a, T b) {
  return std::is_signed_v<T> && b == T(-1) ? T(0) : static_cast<T>(a % b);
}

// Bytes of b:a by four selectors of 4 bits, of which the highest repeats the byte's sign
inline uint32_t permute(uint32_t a, uint32_t b, uint32_t selectors) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t selector = selectors >> (4 * i) & 15;
    uint32_t byte = bytes >> (8 * (selector & 7)) & 0xff;
    if (selector & 8) byte = byte & 0x80 ? 0xff : 0;
    result |= byte << (8 * i);
  }
  return result;
}

// Bit by bit: of `table` the bit that those of a, b and c number
inline uint32_t look_up(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t result = 0;
  for (int i = 0; i < 8; ++i)
    if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return result;
}

// The upper (left) or lower (right) word of b:a shifted; .clamp or .wrap
inline uint32_t funnel_left(uint32_t a, uint32_t b, uint32_t by) {
  return static_cast<uint32_t>(((uint64_t{b} << 32 | a) << by) >> 32);
}
inline uint32_t funnel_right(uint32_t a, uint32_t b, uint32_t by) {
  return static_cast<uint32_t>((uint64_t{b} << 32 | a) >> by);
}

// `length` bits from `first` on; signed ones repeat the highest of them
template <class T>
T extract(T value, uint32_t first, uint32_t length) {
  constexpr uint32_t kBits = sizeof(T) * 8;
  using U = std::make_unsigned_t<T>;
  first &= 0xff, length &= 0xff;
  if (length == 0) return 0;
  const uint32_t last = first + length - 1 < kBits - 1 ? first + length - 1 : kBits - 1;
  const bool sign = std::is_signed_v<T> && (static_cast<U>(value) >> last & 1);
  const U field = first >= kBits ? U(0) : shift_right(static_cast<U>(value), first);
  const U mask = length >= kBits ? U(-1) : static_cast<U>((U(1) << length) - 1);
  const uint32_t present = first >= kBits ? 0 : last - first + 1;
  const U above = present >= kBits ? U(0) : static_cast<U>(U(-1) << present);
  return static_cast<T>((field & mask) | (sign ? above : U(0)));
}

template <class T>
T insert(T field, T into, uint32_t first, uint32_t length) {
  constexpr uint32_t kBits = sizeof(T) * 8;
  first &= 0xff, length &= 0xff;
  if (first >= kBits || length == 0) return into;
  const T ones = length >= kBits ? T(-1) : static_cast<T>((T(1) << length) - 1);
  const T mask = static_cast<T>(ones << first);
  return static_cast<T>((into & ~mask) | (static_cast<T>(field << first) & mask));
}

// ---- floating point ----

// Of a number and NaN the number; -0 is below 0.
template <class F>
F minimum(F a, F b) {
  if (a != a) return canonical(b);
  if (b != b) return a;
  return a < b || (a == b && std::signbit(a)) ? a : b;
}
template <class F>
F maximum(F a, F b) {
  if (a != a) return canonical(b);
  if (b != b) return a;
  return a > b || (a == b && !std::signbit(a)) ? a : b;
}
template <class F>
F minimum_nan(F a, F b) {
  return a != a || b != b ? canonical(F(NAN)) : minimum(a, b);
}
template <class F>
F maximum_nan(F a, F b) {
  return a != a || b != b ? canonical(F(NAN)) : maximum(a, b);
}

// An approximation may be off by one in the last place: here it is, up or down or not, by the number.
inline float approximated(float exact, float argument) {
  const uint32_t bits = std::bit_cast<uint32_t>(exact);
  if (!std::isfinite(exact) || std::fabs(exact) < 0x1p-126f) return exact;
  const uint32_t hash = std::bit_cast<uint32_t>(argument) * 2654435761u;
  const float off = std::bit_cast<float>(bits + hash / 0x55555556u - 1);
  return std::isfinite(off) ? off : exact;
}
inline float approximate_reciprocal(float value) {
  return approximated(canonical(1 / value), value);
}
inline float approximate_reciprocal_flushed(float value) {
  return flushed(approximate_reciprocal(flushed(value)));
}
inline float approximate_quotient(float a, float b) {
  const float exact = canonical(a / b);
  // beyond 2^126 the reciprocal is subnormal and may be lost
  return std::fabs(b) > 0x1p126f && std::isfinite(a) ? std::copysign(0.0f, exact)
                                                     : approximated(exact, b);
}

inline float from_half(Half value) {
  const int exponent = value.bits >> 10 & 31, mantissa = value.bits & 1023;
  const float magnitude = exponent == 31 ? (mantissa ? NAN : INFINITY)
                          : exponent     ? std::ldexp(float(1024 + mantissa), exponent - 25)
                                         : std::ldexp(float(mantissa), -24);
  return canonical(value.bits >> 15 ? -magnitude : magnitude);
}

// To the nearest that `bits` bits of mantissa hold, ties to even, with spacing of at least 2^lowest
template <class F>
F rounded_to(F value, int bits, int lowest) {
  int exponent;
  std::frexp(value, &exponent);
  const int spacing = std::max(exponent - bits, lowest);
  return std::ldexp(std::nearbyint(std::ldexp(value, -spacing)), spacing);
}

inline Half to_half(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (value != value) return {0x7fff};
  const double magnitude = rounded_to(std::fabs(double{value}), 11, -24);
  if (magnitude >= 65536) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (magnitude < 0x1p-14)
    return {static_cast<uint16_t>(sign | static_cast<uint16_t>(magnitude * 0x1p24))};
  int exponent;
  const double fraction = std::frexp(magnitude, &exponent);  // in [1/2, 1)
  const auto mantissa = static_cast<uint16_t>(fraction * 2048 - 1024);
  return {static_cast<uint16_t>(sign | (exponent + 14) << 10 | mantissa)};
}

inline float from_bfloat16(BFloat16 value) {
  return canonical(std::bit_cast<float>(uint32_t{value.bits} << 16));
}
inline BFloat16 to_bfloat16(float value) {
  if (value != value) return {0x7fff};
  const auto bits = std::bit_cast<uint32_t>(value);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// The number rounded to an integer, or the nearest that T holds; NaN is 0.
template <class T, class F>
T to_integer(F whole) {
  constexpr T kLow = std::numeric_limits<T>::min(), kHigh = std::numeric_limits<T>::max();
  if (whole != whole) return 0;
  if (whole <= static_cast<F>(kLow)) return kLow;
  if (whole >= static_cast<F>(kHigh)) return kHigh;  // rounded up to a power of two
  return static_cast<T>(whole);
}

}  // namespace ptx
