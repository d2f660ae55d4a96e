// The arithmetic that CPU and CUDA share: element types, formulas, interpolation.
#include "testing.h"

#include "kernels/blend.h"
#include "kernels/interpolate.h"
#include "kernels/methods.h"

using namespace fastcam;

namespace {

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
  for (uint32_t bits : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0xffffffffu})  // any NaN's
    expect(std::isnan(load(store<bfloat16>(float_from_bits(bits)))), "store(NaN) as bfloat16");
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
  const GradCAMPlusPlus<float> method{0}, no_floor{0, -INFINITY};
  for (float a : {-INFINITY, -3.5f, -0.0f, 0.0f, 2.5f, INFINITY}) {
    expect_near(method.summand(a), std::max(a, 0.0f), 0, "ReLU(A)");
    expect_near(no_floor.summand(a), a, 0, "A");
  }
  expect_near(method.summand(NAN), kNaN, 0, "NaN of A");
  expect_near(no_floor.summand(NAN), kNaN, 0, "NaN of A without a floor");
  expect_near(method.term(0, 0.5f, -4), 0, 0, "a denominator of 0");
  expect_near(method.term(0, 0, 1), 0, 0, "no gradient");
  expect_near(method.term(0, NAN, 1), kNaN, 0, "NaN");
  expect_near(method.term(0, 1e30f, 1e30f), 1e-30, 1e-36, "powers that overflow");
  expect_near(method.term(0, 1e30f, -1e30f), -1e-30, 1e-36, "powers that overflow below 0");
  expect_near(method.term(0, 1e-30f, 1), 5e-31, 1e-36, "powers that underflow");
}

// Where a quick term may stand for the term, it is right to a few roundings, and not finite where that is not.
void test_quick_terms() {
  const float inf = INFINITY, max = std::numeric_limits<float>::max();
  const GradCAMPlusPlus<float> method{0};
  std::vector<float> totals{0, 1e-45f, 1e-39f, 1e-30f, 1e-9f, 1, 3e5f, 1e18f, 1e29f};
  std::vector<float> gradients{0,      -1, -max, -inf,  1e-45f, 1e-38f,
                               1e-10f, 1,  7e4f, 1e18f, 1e30f,  max};
  for (int i = 0; i < 1000; ++i) {
    totals.push_back(static_cast<float>(std::exp(20 * normal())));
    gradients.push_back(static_cast<float>(std::exp(20 * normal())));
  }
  for (float total : totals) {
    if (!method.quick(total)) continue;
    for (float g : gradients) {
      const float quick = method.quick_term(g, total, method.cap(total));
      const double exact = g <= 0 ? 0 : double{g} / (2 + double{g} * total);
      expect_near(quick, exact, 4e-7 * exact + 1e-45, [&] {
        return "term of " + std::to_string(g) + ", " + std::to_string(total);
      });
    }
    expect(std::isnan(method.quick_term(NAN, total, method.cap(total))), "NaN stays");
    if (total > 0)
      expect_near(
          method.quick_term(inf, total, method.cap(total)), 1 / double{total}, 1e-6 / total, "inf");
  }
  const float least = 0x1p-60f, most = 0x1p100f;
  for (float total : {least, most})
    expect(method.quick(total), "quick terms for a total of " + std::to_string(total));
  for (float total :
       {-1e-9f, -3.0f, 1e-45f, std::nextafter(least, 0.0f), std::nextafter(most, inf), max, inf,
        NAN})
    expect(!method.quick(total), "no quick term for a total of " + std::to_string(total));
  expect(!GradCAMPlusPlus<float>{1e-7f}.quick(1), "no quick term with an eps");
}

void test_xgradcam() {
  expect_near(XGradCAM<double>{1}.weight(6, 2, 49), 2, 1e-12, "sum over total and eps");
  expect_near(XGradCAM<double>{0}.weight(3, 0, 49), 0, 0, "no activations");
}

// ---- colours ----

void test_blended() {
  for (int color = 0; color < 256; ++color)
    for (float alpha : {0.0f, 0.3f, 0.5f, 1.0f})
      for (float image : {0.0f, 0.75f, 100.0f, 255.0f}) {
        const double want = double{alpha} * color + (1 - double{alpha}) * image;
        const int got = blended(alpha, static_cast<uint8_t>(color), image);
        expect_near(got, want, 0.50001, "the nearest level of a blend");
      }
}

// ---- interpolation ----

void test_quotient() {
  constexpr int64_t kLarge = int64_t{1} << 32;
  for (int64_t n : {int64_t{7}, kLarge - 1, kLarge, 5 * kLarge + 9})
    for (int64_t d : {int64_t{3}, kLarge - 1, kLarge + 2})
      expect(
          quotient(n, d) == n / d, "quotient of " + std::to_string(n) + ", " + std::to_string(d));
}

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

}  // namespace

int main() {
  test_float16();
  test_bfloat16();
  test_gradcam_plus_plus();
  test_quick_terms();
  test_xgradcam();
  test_blended();
  test_quotient();
  test_interpolation();
  return report();
}
