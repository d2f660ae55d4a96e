// What the tests of all kernels share: checks, tensors in every memory order, the element types.
#pragma once

#include "emulator.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/layout.h"
#include "kernels/plan.h"
#include "kernels/scalar.h"

namespace fastcam {

// Sanitizers take ten times the time: they run every instantiation and layout, but fewer sizes.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

inline int failures = 0, checks = 0;

inline void expect(bool condition, const std::string& what) {
  ++checks;
  if (condition) return;
  if (++failures <= 20) std::printf("FAILED %s\n", what.c_str());
}

// `what` is a string, or makes one when it is needed.
template <class What>
void expect_near(double got, double want, double tolerance, const What& what) {
  ++checks;
  const bool equal =
      std::isnan(want) ? std::isnan(got) : got == want || std::abs(got - want) <= tolerance;
  if (equal) return;
  if (++failures > 20) return;
  std::string name;
  if constexpr (std::is_invocable_v<What>) {
    name = what();
  } else {
    name = what;
  }
  std::printf("FAILED %s: got %.9g, expected %.9g\n", name.c_str(), got, want);
}

inline int report() {
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures || !checks ? 1 : 0;
}

inline std::mt19937 generator(7);

inline double normal() {
  return std::normal_distribution<double>()(generator);
}

template <class T>
T stored(double value) {
  return store<T>(static_cast<arithmetic_t<T>>(value));
}

// Rounding of the arithmetic, a few times over
template <class T>
constexpr double kRounding = sizeof(T) == 8 ? 1e-14 : 2e-6;

// Rounding of a result that is stored as T
template <class T>
double storage_rounding(double value) {
  if (std::is_same_v<T, bfloat16>) return std::abs(value) * 0x1p-8;
  if (std::is_same_v<T, float16>) return std::max(std::abs(value) * 0x1p-11, 0x1p-25);
  return std::abs(value) * kRounding<T>;
}

// f(float{}), f(double{})...
template <class Function>
void for_types(const Function& f) {
  f(float{});
  f(double{});
  f(float16{});
  f(bfloat16{});
}

// Elements that may begin at an address that is not a multiple of 16. Nothing lies around them, so that
// AddressSanitizer sees the first access beyond.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count, bool unaligned = false)
      : offset_(unaligned ? 1 : 0), size_(count), memory_(count + offset_) {}

  T* data() { return memory_.data() + offset_; }
  const T* data() const { return memory_.data() + offset_; }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data()[i]; }
  const T& operator[](int64_t i) const { return data()[i]; }

  void fill_normal() {
    for (int64_t i = 0; i < size_; ++i) data()[i] = stored<T>(normal());
  }
  void fill(T value) { std::fill(memory_.begin(), memory_.end(), value); }

 private:
  int64_t offset_, size_;
  std::vector<T> memory_;
};

enum class Layout {
  kContiguous,
  kChannelsLast,
  kStrided,
  kExpanded,
  kUnaligned,
  kPadded,    // whole vectors a channel; the last may be cut off
  kRepeated,  // every position is the first one of a contiguous channel
};
// All tests take the first ones.
constexpr Layout kLayouts[] = {
    Layout::kContiguous, Layout::kChannelsLast, Layout::kStrided, Layout::kExpanded,
    Layout::kUnaligned};

inline const char* name_of(Layout layout) {
  constexpr const char* kNames[] = {"contiguous", "channels_last", "strided", "expanded",
                                    "unaligned",  "padded",        "repeated"};
  return kNames[static_cast<int>(layout)];
}

// A tensor (N, K, C, positions)
template <class T>
struct Array {
  Extents extents;
  Layout layout;
  Strides strides;
  Buffer<T> buffer;

  Array(const Extents& e, Layout layout)
      : extents(e),
        layout(layout),
        strides(strides_of(e, layout)),
        buffer(size_of(e, strides), layout == Layout::kUnaligned) {
    buffer.fill_normal();
  }

  Features<T> features() const { return {buffer.data(), strides}; }
  T& at(int64_t n, int64_t k, int64_t c, int64_t p) { return buffer[offset(n, k, c, p)]; }
  double operator()(int64_t n, int64_t k, int64_t c, int64_t p) const {
    return load(buffer[offset(n, k, c, p)]);
  }

 private:
  int64_t offset(int64_t n, int64_t k, int64_t c, int64_t p) const {
    return n * strides.image + k * strides.klass + c * strides.channel + p * strides.position;
  }
  static Strides strides_of(const Extents& e, Layout layout) {
    const int64_t k = e.classes, c = e.channels, p = e.positions;
    switch (layout) {
      case Layout::kChannelsLast:
        return {k * c * p, c * p, 1, c};
      case Layout::kStrided:  // every second element of every third image
        return {k * c * p * 6, c * p * 2, p * 2, 2};
      case Layout::kExpanded:  // as the gradient of global average pooling
        return {k * c, c, 1, 0};
      case Layout::kPadded: {
        const int64_t row = ceil_div(p, 16) * 16;
        return {k * c * row, c * row, row, 1};
      }
      case Layout::kRepeated:
        return {k * c * p, c * p, p, 0};
      default:
        return {k * c * p, c * p, p, 1};
    }
  }
  static int64_t size_of(const Extents& e, const Strides& s) {
    return (e.images - 1) * s.image + (e.classes - 1) * s.klass + (e.channels - 1) * s.channel +
           (e.positions - 1) * s.position + 1;
  }
};

// Blocks of the kernels' shape
inline emulator::Configuration grid(int64_t blocks, int64_t shared_bytes = 0) {
  emulator::asks_for_memory = needs_opt_in;
  return {dim3{static_cast<unsigned>(blocks)}, dim3{32, 8}, static_cast<size_t>(shared_bytes)};
}

}  // namespace fastcam
