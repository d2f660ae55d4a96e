// The kernels' arithmetic and every CUDA kernel, against double loops that say what is meant.
#include "emulator.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <string>

#include "kernels/channels.cuh"
#include "kernels/guided_relu.cuh"
#include "kernels/normalize.cuh"
#include "kernels/overlay.cuh"

using namespace fastcam;

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
int failures = 0, checks = 0;

void expect(bool condition, const std::string& what) {
  ++checks;
  if (condition) return;
  if (++failures <= 20) std::printf("FAILED %s\n", what.c_str());
}

void expect_near(double got, double want, double tolerance, const std::string& what) {
  const bool equal =
      std::isnan(want) ? std::isnan(got) : got == want || std::abs(got - want) <= tolerance;
  expect(equal, what + ": got " + std::to_string(got) + ", expected " + std::to_string(want));
}

std::mt19937 generator(7);

double normal() {
  return std::normal_distribution<double>()(generator);
}

// ---- element types ----

double half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double magnitude = exponent == 31 ? (mantissa ? kNaN : INFINITY)
                           : exponent     ? std::ldexp(1024 + mantissa, exponent - 25)
                                          : std::ldexp(mantissa, -24);
  return bits >> 15 ? -magnitude : magnitude;
}

void test_float16() {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float16 half{static_cast<uint16_t>(bits)};
    expect_near(load(half), half_value(bits), 0, "load(float16 " + std::to_string(bits) + ")");
    if (!std::isnan(load(half)))
      expect(
          store<float16>(load(half)).bits == bits, "store(float16 " + std::to_string(bits) + ")");
  }
  expect(std::isnan(load(store<float16>(NAN))), "store(NaN) as float16");
  // halfway between two neighbours goes to the even one, anything beyond to the nearer
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const double below = half_value(bits);
    const double above = bits == 0x7bff ? 65536.0 : half_value(bits + 1);
    const float middle = static_cast<float>((below + above) / 2);
    expect(store<float16>(middle).bits == bits + (bits & 1), "tie above " + std::to_string(bits));
    expect(store<float16>(std::nextafter(middle, 1e9f)).bits == bits + 1, "just above the tie");
    expect(store<float16>(std::nextafter(middle, 0.0f)).bits == bits, "just below the tie");
    expect(store<float16>(-middle).bits == (0x8000 | (bits + (bits & 1))), "negative tie");
  }
}

void test_bfloat16() {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const bfloat16 value{static_cast<uint16_t>(bits)};
    if (!std::isnan(load(value)))
      expect(store<bfloat16>(load(value)).bits == bits, "bfloat16 " + std::to_string(bits));
  }
  expect(store<bfloat16>(float_from_bits(0x3f808000u)).bits == 0x3f80, "tie to even, down");
  expect(store<bfloat16>(float_from_bits(0x3f818000u)).bits == 0x3f82, "tie to even, up");
  expect(store<bfloat16>(float_from_bits(0x3f808001u)).bits == 0x3f81, "above the tie");
  expect(std::isnan(load(store<bfloat16>(NAN))), "store(NaN) as bfloat16");
}

// ---- formulas ----

void test_gradcam_plus_plus() {
  for (int i = 0; i < 10000; ++i) {
    const double g = normal() * std::pow(10, normal() * 3), total = std::abs(normal()) * 100;
    const double eps = i % 2 ? 1e-6 : 0;
    const double alpha = g * g / (2 * g * g + total * g * g * g + eps);
    const double want = alpha * std::max(g, 0.0);
    expect_near(
        GradCAMPlusPlus<double>{eps}.term(0, g, total), want, 1e-12 * want, "alpha ReLU(g)");
  }
  const GradCAMPlusPlus<float> method{0};
  expect_near(method.term(0, 0.5f, -4), 0, 0, "a denominator of 0");
  expect_near(method.term(0, 0, 1), 0, 0, "no gradient");
  expect_near(method.term(0, NAN, 1), kNaN, 0, "NaN");
  expect_near(method.term(0, 1e30f, 1e30f), 1e-30, 1e-36, "powers that overflow");
  expect_near(method.term(0, 1e-30f, 1), 5e-31, 1e-36, "powers that underflow");
}

// ---- interpolation ----

void test_interpolation() {
  for (int64_t in = 1; in <= 12; ++in) {
    for (int64_t out = 1; out <= 40; ++out) {
      std::vector<double> map(in);
      for (double& value : map) value = normal();
      double low = INFINITY, high = -INFINITY, low_bound = INFINITY, high_bound = -INFINITY;
      const auto value_at = [&](int64_t x) {
        const Sample<double> s = sample_at<double>(x, in, out);
        return blend(s, map[s.near], map[s.far]);
      };
      for (int64_t x = 0; x < out; ++x) {
        const double source = std::max(0.0, (x + 0.5) * in / out - 0.5);
        const auto near = static_cast<int64_t>(std::floor(source + 1e-12));
        const double fraction = source - near, far = map[std::min(near + 1, in - 1)];
        expect_near(value_at(x), map[near] * (1 - fraction) + far * fraction, 1e-9, "a sample");
        low = std::min(low, value_at(x)), high = std::max(high, value_at(x));
      }
      for (int64_t j = 0; j < bound_count(in, out); ++j) {
        const int64_t x = bound_sample(j, in, out);
        expect(0 <= x && x < out, "a bounding sample is a sample");
        low_bound = std::min(low_bound, value_at(x));
        high_bound = std::max(high_bound, value_at(x));
      }
      // to rounding, which can lift a sample above its neighbours
      expect_near(low_bound, low, 1e-14, "the minimum of the bounding samples");
      expect_near(high_bound, high, 1e-14, "the maximum of the bounding samples");
    }
  }
}

// ---- kernels ----

template <class T>
T stored(double value) {
  return store<T>(static_cast<arithmetic_t<T>>(value));
}

template <class T>
constexpr double kTolerance = sizeof(T) == 8 ? 1e-12 : 1e-5;

// A tensor (N, K, C, positions) in one of three memory orders, a guard of NaN around it.
template <class T>
struct Array {
  std::vector<T> memory;
  Strides strides;

  Array(const Extents& e, const std::string& layout) {
    const auto [n, k, c, p] = e;
    strides = {k * c * p, c * p, p, 1};
    if (layout == "channels_last") strides = {k * c * p, c * p, 1, c};
    if (layout == "strided") strides = {k * c * p * 2, c * p * 2, p * 2, 2};
    const int64_t size = n * k * c * p * (layout == "strided" ? 2 : 1);
    memory.assign(size + 2 * kGuard, stored<T>(kNaN));
    for (int64_t i = 0; i < n * k * c * p; ++i)
      memory[kGuard + i * (layout == "strided" ? 2 : 1)] = stored<T>(normal());
  }

  Features<T> features() const { return {memory.data() + kGuard, strides}; }
  double operator()(int64_t n, int64_t k, int64_t c, int64_t p) const {
    return load(features().at(n, k, c)[p * strides.position]);
  }

  static constexpr int64_t kGuard = 64;
};

constexpr dim3 kBlock{kLanes, kRows, 1};

unsigned blocks_of(int64_t total, int64_t each) {
  return static_cast<unsigned>((total + each - 1) / each);
}

template <class T, class Method>
std::vector<arithmetic_t<T>> run_channel_weights(
    const Array<T>& a, const Array<T>& g, const Extents& e, const Method& method, bool across) {
  std::vector<arithmetic_t<T>> weights(e.images * e.classes * e.channels, kNaN);
  const unsigned maps = e.images * e.classes;
  if (across) {
    emulator::launch(
        channel_weights_kernel<true, T, Method>, maps * blocks_of(e.channels, kLanes), kBlock,
        a.features(), g.features(), e, method, weights.data());
  } else {
    emulator::launch(
        channel_weights_kernel<false, T, Method>, maps * blocks_of(e.channels, kRows), kBlock,
        a.features(), g.features(), e, method, weights.data());
  }
  return weights;
}

template <class T, class Pixel>
std::vector<arithmetic_t<T>> run_sum_channels(
    const Array<T>& a, const Array<T>& g, const Extents& e, const Pixel& pixel, bool across) {
  std::vector<arithmetic_t<T>> maps(e.images * e.classes * e.positions, kNaN);
  const unsigned count = e.images * e.classes;
  if (across) {
    emulator::launch(
        sum_channels_kernel<true, T, Pixel>, count * blocks_of(e.positions, kRows), kBlock,
        a.features(), g.features(), e, pixel, true, maps.data());
  } else {
    emulator::launch(
        sum_channels_kernel<false, T, Pixel>, count * blocks_of(e.positions, kLanes), kBlock,
        a.features(), g.features(), e, pixel, true, maps.data());
  }
  return maps;
}

template <class T>
void test_channels(const Extents& e, const std::string& layout) {
  using F = arithmetic_t<T>;
  const bool across = layout == "channels_last";
  const Array<T> a({e.images, 1, e.channels, e.positions}, layout), g(e, layout);
  const auto gap = run_channel_weights(a, g, e, GradCAM<F>{}, across);
  const auto pp = run_channel_weights(a, g, e, GradCAMPlusPlus<F>{F(1)}, across);
  const auto x = run_channel_weights(a, g, e, XGradCAM<F>{F(100)}, across);
  const auto gradcam = run_sum_channels(
      a, a, e, WeightedPixel<F>{gap.data(), e.classes * e.channels, e.channels}, across);
  const auto hires = run_sum_channels(a, g, e, ElementwisePixel<F, HiResCAM<F>>{}, across);
  const auto layer = run_sum_channels(a, g, e, ElementwisePixel<F, LayerCAM<F>>{}, across);
  const auto element =
      run_sum_channels(a, g, e, ElementwisePixel<F, GradCAMElementWise<F>>{}, across);

  for (int64_t n = 0; n < e.images; ++n) {
    for (int64_t k = 0; k < e.classes; ++k) {
      for (int64_t c = 0; c < e.channels; ++c) {
        double total = 0, mean = 0, plus_plus = 0, scale = 0, product = 0;
        for (int64_t p = 0; p < e.positions; ++p) total += a(n, 0, c, p);
        for (int64_t p = 0; p < e.positions; ++p) {
          const double gradient = g(n, k, c, p);
          mean += gradient / e.positions;
          product += gradient * a(n, 0, c, p);
          const double denominator = 2 * gradient * gradient + total * std::pow(gradient, 3) + 1;
          const double term = std::pow(gradient, 2) / denominator * std::max(gradient, 0.0);
          plus_plus += term;
          // near its pole the formula amplifies the rounding of its inputs
          scale += std::abs(term) * (1 + std::abs(total * std::pow(gradient, 3) / denominator));
        }
        const int64_t i = (n * e.classes + k) * e.channels + c;
        const double tolerance = kTolerance<T>;
        expect_near(gap[i], mean, tolerance, "gap, " + layout);
        expect_near(pp[i], plus_plus, tolerance * (1 + 10 * scale), "Grad-CAM++, " + layout);
        expect_near(x[i], product / (total + 100), tolerance, "XGrad-CAM, " + layout);
      }
      for (int64_t p = 0; p < e.positions; ++p) {
        double sum = 0, hires_sum = 0, layer_sum = 0, element_sum = 0;
        for (int64_t c = 0; c < e.channels; ++c) {
          const double activation = a(n, 0, c, p), gradient = g(n, k, c, p);
          sum += gap[(n * e.classes + k) * e.channels + c] * activation;
          hires_sum += gradient * activation;
          layer_sum += std::max(gradient, 0.0) * activation;
          element_sum += std::max(gradient * activation, 0.0);
        }
        const int64_t i = (n * e.classes + k) * e.positions + p;
        const double tolerance = kTolerance<T> * (1 + e.channels);
        expect_near(gradcam[i], std::max(sum, 0.0), tolerance, "weighted sum, " + layout);
        expect_near(hires[i], std::max(hires_sum, 0.0), tolerance, "HiResCAM, " + layout);
        expect_near(layer[i], std::max(layer_sum, 0.0), tolerance, "LayerCAM, " + layout);
        expect_near(element[i], std::max(element_sum, 0.0), tolerance, "element-wise, " + layout);
      }
    }
  }
}

// A map that stays NaN where the image has NaN, and no other image's.
void test_nan_stays_in_its_image() {
  const Extents e{2, 1, 5, 9};
  Array<float> a({2, 1, 5, 9}, "contiguous"), g(e, "contiguous");
  a.memory[Array<float>::kGuard + 3] = NAN;
  const auto maps = run_sum_channels(a, g, e, ElementwisePixel<float, HiResCAM<float>>{}, false);
  for (int64_t i = 0; i < 18; ++i) expect(std::isnan(maps[i]) == (i == 3), "NaN of one position");
}

struct Enlargement {
  Size size, enlarged;

  double operator()(const std::vector<double>& map, int64_t z, int64_t y, int64_t x) const {
    const auto d = sample_at<double>(z, size.depth, enlarged.depth);
    const auto h = sample_at<double>(y, size.height, enlarged.height);
    const auto w = sample_at<double>(x, size.width, enlarged.width);
    const auto at = [&](int64_t i, int64_t j, int64_t k) {
      return map[(i * size.height + j) * size.width + k];
    };
    const auto plane = [&](int64_t i) {
      return blend(
          h, blend(w, at(i, h.near, w.near), at(i, h.near, w.far)),
          blend(w, at(i, h.far, w.near), at(i, h.far, w.far)));
    };
    return blend(d, plane(d.near), plane(d.far));
  }
};

template <class T>
void test_enlargement(const Size& size, const Size& enlarged) {
  using F = arithmetic_t<T>;
  constexpr int64_t kMaps = 2, kChannels = 3, kShares = 2;
  const int64_t small = size.positions(), large = enlarged.positions();
  std::vector<T> maps(kMaps * small), guided(kMaps * kChannels * large);
  for (T& value : maps) value = stored<T>(normal());
  for (T& value : guided) value = stored<T>(normal());
  std::vector<F> maps_as_f;
  for (const T& value : maps) maps_as_f.push_back(load(value));

  std::vector<F> plain(kMaps * large, kNaN), normalized(kMaps * large, kNaN);
  std::vector<T> product(kMaps * kChannels * large, stored<T>(kNaN));
  const VolumeStrides strides{kChannels * large, 0, large, enlarged.height * enlarged.width,
                              enlarged.width,    1};
  emulator::launch(
      upsample_kernel<T>, kMaps * kShares, kBlock, maps.data(), size, enlarged, kShares, false,
      F(0), plain.data());
  emulator::launch(
      upsample_kernel<T>, kMaps * kShares, kBlock, maps.data(), size, enlarged, kShares, true, F(0),
      normalized.data());
  emulator::launch(
      guided_product_kernel<T>, kMaps * kShares, kBlock, maps_as_f.data(), guided.data(), size,
      enlarged, kShares, int64_t{1}, kChannels, strides, strides, F(0), product.data());

  const Enlargement enlarge{size, enlarged};
  for (int64_t n = 0; n < kMaps; ++n) {
    std::vector<double> map, want;
    for (int64_t i = 0; i < small; ++i) map.push_back(load(maps[n * small + i]));
    for (int64_t z = 0; z < enlarged.depth; ++z)
      for (int64_t y = 0; y < enlarged.height; ++y)
        for (int64_t x = 0; x < enlarged.width; ++x) want.push_back(enlarge(map, z, y, x));
    const double low = *std::min_element(want.begin(), want.end());
    const double high = *std::max_element(want.begin(), want.end());
    for (int64_t i = 0; i < large; ++i) {
      const double heat = high > low ? (want[i] - low) / (high - low) : 0;
      expect_near(plain[n * large + i], want[i], kTolerance<T>, "upsample");
      expect_near(normalized[n * large + i], heat, kTolerance<T>, "upsample and normalize");
      for (int64_t c = 0; c < kChannels; ++c) {
        const int64_t at = (n * kChannels + c) * large + i;
        const double result = heat * load(guided[at]);
        const double rounding = sizeof(T) == 2 ? std::abs(result) / 100 + 1e-6 : 1e-5;
        expect_near(load(product[at]), result, rounding, "guided product");
      }
    }
  }
}

template <class T>
void test_normalize() {
  using F = arithmetic_t<T>;
  constexpr int64_t kMaps = 4, kPositions = 301;
  std::vector<T> maps(kMaps * kPositions);
  for (T& value : maps) value = stored<T>(normal());
  for (int64_t p = 0; p < kPositions; ++p) maps[kPositions + p] = stored<T>(3);
  maps[2 * kPositions + 300] = stored<T>(kNaN);
  std::vector<F> result(maps.size(), F(7));
  emulator::launch(
      normalize_kernel<T>, kMaps, kBlock, maps.data(), kPositions, F(0), result.data());
  for (int64_t n = 0; n < kMaps; ++n) {
    double low = INFINITY, high = -INFINITY;
    for (int64_t p = 0; p < kPositions; ++p) {
      low = std::min<double>(low, load(maps[n * kPositions + p]));
      high = std::max<double>(high, load(maps[n * kPositions + p]));
    }
    for (int64_t p = 0; p < kPositions; ++p) {
      const double value = load(maps[n * kPositions + p]);
      const double want = n == 2 ? kNaN : n == 1 ? 0 : (value - low) / (high - low);
      expect_near(result[n * kPositions + p], want, 1e-6, "normalize map " + std::to_string(n));
    }
  }
}

template <class T>
void test_guided_relu() {
  constexpr int64_t kCount = 1000;
  std::vector<T> input(kCount), gradient(kCount), forward(kCount), backward(kCount);
  for (T& value : input) value = stored<T>(normal());
  for (T& value : gradient) value = stored<T>(normal());
  input[0] = stored<T>(kNaN), input[1] = stored<T>(0), gradient[2] = stored<T>(kNaN);
  input[2] = stored<T>(1), input[3] = stored<T>(-1), gradient[3] = stored<T>(kNaN);
  emulator::launch(guided_relu_kernel<T>, 2u, kBlock, input.data(), kCount, forward.data());
  emulator::launch(
      guided_relu_backward_kernel<T>, 2u, kBlock, gradient.data(), input.data(), kCount,
      backward.data());
  for (int64_t i = 0; i < kCount; ++i) {
    const double x = load(input[i]), g = load(gradient[i]);
    expect_near(load(forward[i]), x < 0 ? 0 : x, 0, "guided_relu");
    expect_near(load(backward[i]), x <= 0 || g < 0 ? 0 : g, 0, "guided_relu_backward");
  }
}

void test_overlay(bool interleaved) {
  const Size size{1, 3, 2}, enlarged{1, 9, 7};
  const int64_t positions = enlarged.positions();
  std::vector<float> maps(2 * size.positions());
  for (float& value : maps) value = static_cast<float>(std::abs(normal()) / 2);
  maps[0] = NAN;
  std::vector<uint8_t> images(2 * 3 * positions), colormap(256 * 3), pictures(images.size());
  for (size_t i = 0; i < images.size(); ++i) images[i] = static_cast<uint8_t>(i * 37);
  for (int i = 0; i < 256 * 3; ++i) colormap[i] = static_cast<uint8_t>(i / 3);  // grey
  const VolumeStrides strides =
      interleaved ? VolumeStrides{3 * positions, 0, 1, 0, enlarged.width * 3, 3}
                  : VolumeStrides{3 * positions, 0, positions, 0, enlarged.width, 1};
  emulator::launch(
      overlay_kernel<uint8_t>, 4u, kBlock, maps.data(), images.data(), colormap.data(), size,
      enlarged, int64_t{2}, strides, strides, 0.25f, pictures.data());
  const Enlargement enlarge{size, enlarged};
  for (int64_t n = 0; n < 2; ++n) {
    const std::vector<double> map(maps.begin() + n * 6, maps.begin() + (n + 1) * 6);
    for (int64_t y = 0; y < enlarged.height; ++y) {
      for (int64_t x = 0; x < enlarged.width; ++x) {
        const double heat = enlarge(map, 0, y, x);
        const double color = 255 * (heat > 0 ? std::min(heat, 1.0) : 0);
        for (int64_t c = 0; c < 3; ++c) {
          const int64_t at =
              n * strides.image + c * strides.channel + y * strides.height + x * strides.width;
          const double want = 0.25 * color + 0.75 * images[at];
          expect_near(pictures[at], want, 0.75, "overlay");
        }
      }
    }
  }
}

template <class T>
void test_type() {
  for (const char* layout : {"contiguous", "channels_last", "strided"}) {
    test_channels<T>({2, 1, 9, 49}, layout);
    test_channels<T>({1, 2, 33, 5}, layout);
    test_channels<T>({1, 1, 1, 1}, layout);
  }
  test_enlargement<T>({1, 7, 7}, {1, 30, 29});
  test_enlargement<T>({1, 5, 4}, {1, 3, 9});
  test_enlargement<T>({1, 1, 6}, {1, 1, 50});
  test_enlargement<T>({3, 4, 2}, {7, 6, 5});
  test_normalize<T>();
  test_guided_relu<T>();
}

}  // namespace

int main() {
  test_float16();
  test_bfloat16();
  test_gradcam_plus_plus();
  test_interpolation();
  test_nan_stays_in_its_image();
  test_overlay(true);
  test_overlay(false);
  test_type<float>();
  test_type<double>();
  test_type<float16>();
  test_type<bfloat16>();
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures ? 1 : 0;
}
