// A channel's weight, of every method that has one.
#include "testing.h"

#include "kernels/channel_weights.cuh"

using namespace fastcam;

namespace {

template <bool kChannelsLast, class T, class Method>
std::vector<arithmetic_t<T>> run(
    const Array<T>& a, const Array<T>& g, const Method& method, int64_t slices) {
  using F = arithmetic_t<T>;
  const Extents& e = g.extents;
  const int64_t maps = e.images * e.classes;
  const int64_t shares = ceil_div(e.channels, channels_per_block<kChannelsLast>(e.positions));
  std::vector<F> weights(maps * e.channels, F(kNaN)), terms(slices * maps * e.channels, F(kNaN)),
      totals(slices * e.images * e.channels, F(kNaN));
  const auto launch = [&](WeightLaunch which, int64_t blocks, const Extents& extents) {
    emulator::launch(
        channel_weights_kernel<kChannelsLast, T, Method>, grid(blocks), a.features(), g.features(),
        extents, method, which, ChannelSums<F>{slices, totals.data(), terms.data()},
        weights.data());
  };
  if (slices == 1) {
    launch(WeightLaunch::kWhole, maps * shares, e);
    return weights;
  }
  if (Method::kUsesActivations)
    launch(
        WeightLaunch::kTotals, e.images * shares * slices, {e.images, 1, e.channels, e.positions});
  launch(WeightLaunch::kTerms, maps * shares * slices, e);
  launch(WeightLaunch::kFold, maps * shares, e);
  return weights;
}

template <class T, class Method>
std::vector<arithmetic_t<T>> run(
    const Array<T>& a, const Array<T>& g, const Method& method, int64_t slices) {
  return is_channels_last(g.features()) ? run<true>(a, g, method, slices)
                                        : run<false>(a, g, method, slices);
}

template <class T>
void test_weights(const Extents& e, Layout a_layout, Layout g_layout, int64_t slices = 1) {
  using F = arithmetic_t<T>;
  constexpr double kEps = 1, kXEps = 100;
  const Array<T> a({e.images, 1, e.channels, e.positions}, a_layout), g(e, g_layout);
  const auto gap = run(a, g, GradCAM<F>{}, slices);
  const auto plus_plus = run(a, g, GradCAMPlusPlus<F>{F(kEps)}, slices);
  const auto no_floor = run(a, g, GradCAMPlusPlus<F>{F(kEps), -INFINITY}, slices);
  const auto x = run(a, g, XGradCAM<F>{F(kXEps)}, slices);
  const std::string layouts = std::string(", A ") + name_of(a_layout) + ", g " + name_of(g_layout);

  for (int64_t n = 0; n < e.images; ++n) {
    for (int64_t k = 0; k < e.classes; ++k) {
      for (int64_t c = 0; c < e.channels; ++c) {
        long double total = 0, total_scale = 0, rectified = 0, mean = 0, mean_scale = 0,
                    product = 0, product_scale = 0;
        for (int64_t p = 0; p < e.positions; ++p) {
          total += a(n, 0, c, p);
          rectified += std::max<double>(a(n, 0, c, p), 0);
          total_scale += std::abs(a(n, 0, c, p));
        }
        // of Grad-CAM++, with sum ReLU(A) and with sum A
        long double sums[2] = {}, sum_scales[2] = {};
        for (int64_t p = 0; p < e.positions; ++p) {
          const double gradient = g(n, k, c, p), square = gradient * gradient;
          mean += gradient / e.positions;
          mean_scale += std::abs(gradient) / e.positions;
          product += gradient * a(n, 0, c, p);
          product_scale += std::abs(gradient * a(n, 0, c, p));
          if (gradient <= 0) continue;
          for (int i : {0, 1}) {
            const long double cube = square * gradient;
            const long double denominator = 2 * square + (i ? total : rectified) * cube + kEps;
            sums[i] += cube / denominator;
            // near its pole the formula amplifies the rounding of its inputs
            sum_scales[i] +=
                cube / (denominator * denominator) * (2 * square + total_scale * cube + kEps);
          }
        }
        const int64_t i = (n * e.classes + k) * e.channels + c;
        const double divisor = total + kXEps;
        const double rounding = kRounding<T>;
        expect_near(gap[i], mean, rounding * mean_scale, "gap" + layouts);
        expect_near(plus_plus[i], sums[0], rounding * sum_scales[0], "Grad-CAM++" + layouts);
        expect_near(
            no_floor[i], sums[1], rounding * sum_scales[1], "Grad-CAM++ without a floor" + layouts);
        expect_near(
            x[i], product / divisor,
            rounding * (product_scale / std::abs(divisor) +
                        std::abs(product) / (divisor * divisor) * (total_scale + kXEps)),
            "XGrad-CAM" + layouts);
      }
    }
  }
}

template <class T>
void test_type() {
  for (Layout layout : kLayouts) {
    test_weights<T>({2, 1, 9, 49}, layout, layout);
    test_weights<T>({1, 2, 33, 5}, layout, layout);
    test_weights<T>({1, 1, 1, 1}, layout, layout);
    test_weights<T>({2, 2, 9, 20}, layout, layout, 3);
    // several warps a channel, more than one chunk of a sum
    test_weights<T>({1, 1, 5, 1040}, layout, layout);
    if (kSanitized) continue;
    test_weights<T>({1, 1, 130, 3}, layout, layout);
    test_weights<T>({1, 1, 3, 8600}, layout, layout);
    test_weights<T>({3, 3, 5, 33}, layout, layout);
    test_weights<T>({1, 1, 130, 70}, layout, layout, 7);
    test_weights<T>({1, 2, 3, 1040}, layout, layout, 2);
  }
  test_weights<T>({1, 2, 33, 40}, Layout::kContiguous, Layout::kChannelsLast);
  test_weights<T>({1, 2, 33, 40}, Layout::kChannelsLast, Layout::kContiguous);
  test_weights<T>({1, 2, 33, 40}, Layout::kChannelsLast, Layout::kExpanded);
}

}  // namespace

int main() {
  constexpr Device kH200{132, 227 << 10, 228 << 10};
  expect(plan_weight_slices(1, 112 * 112, kH200) == 49, "one block's work fills the device");
  expect(plan_weight_slices(1024, 112 * 112, kH200) == 1, "many blocks take whole channels");
  expect(plan_weight_slices(1, 49, kH200) == 1, "few positions");
  expect(plan_weight_slices(0, 49, kH200) == 1, "no channel");
  for_types([](auto element) { test_type<decltype(element)>(); });
  return report();
}
