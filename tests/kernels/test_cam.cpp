// The fused kernel from activations and gradients to maps: every method on every layout, under plans that
// hold one and several tiles, classes, slices, windows and stages. ELEMENT: the element type.
#include "testing.h"

#include "kernels/cam.cuh"

using namespace fastcam;

namespace {

using T = ELEMENT;
using F = arithmetic_t<T>;

// A value, and what its rounding is in proportion to
struct Estimate {
  double value = 0, scale = 0;

  void add(double term, double term_scale) {
    value += term;
    scale += term_scale;
  }
};

// Whether a method is tested with this eps: one that keeps its denominators away from 0
bool tested_with(double eps, const std::string& method) {
  if (method == "gradcam++") return eps <= 1;
  if (method == "gradcam++-signed") return eps == 1;
  return eps == (method == "xgradcam" ? 100 : 0);
}

// w_k of one channel; `method` as fastcam names it
Estimate reference_weight(
    const std::string& method, double eps, const Array<T>& a, const Array<T>& g, const Extents& e,
    int64_t n, int64_t k, int64_t c) {
  Estimate total, sum;
  for (int64_t p = 0; p < e.positions; ++p) {
    const double activation = a(n, 0, c, p);
    total.add(
        method == "gradcam++-signed" || method == "xgradcam" ? activation
                                                             : std::max(activation, 0.0),
        std::abs(activation));
  }
  for (int64_t p = 0; p < e.positions; ++p) {
    const double activation = a(n, 0, c, p), gradient = g(n, k, c, p);
    if (method == "gradcam") {
      sum.add(gradient / e.positions, std::abs(gradient) / e.positions);
    } else if (method == "xgradcam") {
      sum.add(gradient * activation, std::abs(gradient * activation));
    } else if (method.rfind("gradcam++", 0) != 0) {
      emulator::fail("no formula of " + method);
    } else if (gradient > 0) {
      const double square = gradient * gradient, cube = square * gradient;
      const double denominator = 2 * square + total.value * cube + eps;
      const double term = square / denominator * gradient;
      // near its pole the formula amplifies the rounding of its inputs
      const double parts = 2 * square + total.scale * cube + eps;
      sum.add(term, std::abs(term / denominator) * parts);
    }
  }
  if (method != "xgradcam") return sum;
  const double denominator = total.value + eps;
  return {
      sum.value / denominator, sum.scale / std::abs(denominator) + std::abs(sum.value) /
                                                                       (denominator * denominator) *
                                                                       (total.scale + eps)};
}

double elementwise(const std::string& method, double a, double g) {
  if (method == "hirescam") return g * a;
  if (method == "layercam") return std::max(g, 0.0) * a;
  if (method == "gradcam-elementwise") return std::max(g * a, 0.0);
  emulator::fail("no formula of " + method);
}

struct Case {
  Extents extents;
  Layout activations, gradients;
  Device device;
};

std::string describe(const std::string& method, const Case& test, const CamPlan& plan) {
  const Extents& e = test.extents;
  std::string text = method;
  for (int64_t n : {e.images, e.classes, e.channels, e.positions}) text += " " + std::to_string(n);
  text += std::string(", A ") + name_of(test.activations) + ", g " + name_of(test.gradients);
  text += ", tile " + std::to_string(plan.tile) + ", stages " + std::to_string(plan.stages);
  text += ", window " + std::to_string(plan.window) + ", classes " + std::to_string(plan.classes);
  text += ", slices " + std::to_string(plan.slices);
  return text;
}

struct Result {
  CamPlan plan;
  std::vector<F> values;  // empty if the plan has no tile
};

// Maps (N, K, positions) or weights (N, K, C); by the layout of whichever is read for all of them
template <class Method>
Result run_cam(
    const Array<T>& a, const Array<T>& g, const Extents& e, const Method& method,
    const Device& device, CamOutput output) {
  const bool weights_only = output == CamOutput::kWeights;
  const bool channels_last = is_channels_last((weights_only ? g : a).features());
  const CamPlan plan = plan_cam(cam_needs<T, Method>(channels_last), e, device);
  if (plan.tile == 0) return {plan, {}};
  const int64_t size = e.classes * (weights_only ? e.channels : e.positions);
  const int64_t slices = weights_only ? 1 : plan.slices;
  std::vector<F> values(e.images * slices * size, F(kNaN));
  const CamArguments<T, Method> arguments(
      a.features(), g.features(), channels_last, e, method, plan, output, values.data());
  emulator::launch(
      channels_last ? cam_kernel<true, T, Method> : cam_kernel<false, T, Method>,
      grid(plan.blocks(e), plan.memory.bytes), arguments);
  if (slices == 1) return {plan, values};
  std::vector<F> maps(e.images * size, F(kNaN));
  emulator::launch(
      fold_slices_kernel<F>, grid(ceil_div(maps.size(), kLanes)), values.data(), slices, size,
      static_cast<int64_t>(maps.size()), output == CamOutput::kRectifiedMaps, maps.data());
  return {plan, maps};
}

// The weights alone
template <class Method>
void test_weights(
    const std::string& name, double eps, const Method& method, const Case& test, const Array<T>& a,
    const Array<T>& g) {
  const Extents& e = test.extents;
  const auto [plan, weights] = run_cam(a, g, e, method, test.device, CamOutput::kWeights);
  if (plan.tile == 0) return;
  for (int64_t n = 0; n < e.images; ++n)
    for (int64_t k = 0; k < e.classes; ++k)
      for (int64_t c = 0; c < e.channels; ++c) {
        const Estimate want = reference_weight(name, eps, a, g, e, n, k, c);
        expect_near(
            weights[(n * e.classes + k) * e.channels + c], want.value,
            kRounding<T> * (want.scale + std::abs(want.value)),
            [&, plan = plan] { return "weights of " + describe(name, test, plan); });
      }
}

template <class Method>
void test_method(
    const std::string& name, double eps, const Method& method, const Case& test, const Array<T>& a,
    const Array<T>& g, bool rectify, std::vector<double>* weights = nullptr) {
  const Extents& e = test.extents;
  const auto [plan, maps] =
      run_cam(a, g, e, method, test.device, rectify ? CamOutput::kRectifiedMaps : CamOutput::kMaps);
  if (plan.tile == 0) return;
  for (int64_t n = 0; n < e.images; ++n) {
    for (int64_t k = 0; k < e.classes; ++k) {
      std::vector<Estimate> weight(e.channels);
      if (has_channel_weights<Method>)
        for (int64_t c = 0; c < e.channels; ++c)
          weight[c] = reference_weight(name, eps, a, g, e, n, k, c);
      if (weights)
        for (int64_t c = 0; c < e.channels; ++c)
          weight[c].value = (*weights)[(n * e.classes + k) * e.channels + c];
      for (int64_t p = 0; p < e.positions; ++p) {
        Estimate sum;
        for (int64_t c = 0; c < e.channels; ++c) {
          const double activation = a(n, 0, c, p);
          if (has_channel_weights<Method> || weights) {
            sum.add(
                weight[c].value * activation,
                (weight[c].scale + std::abs(weight[c].value)) * std::abs(activation));
          } else {
            const double gradient = g(n, k, c, p);
            sum.add(elementwise(name, activation, gradient), std::abs(activation * gradient));
          }
        }
        const double want = rectify && sum.value < 0 ? 0 : sum.value;
        expect_near(
            maps[(n * e.classes + k) * e.positions + p], want, kRounding<T> * sum.scale,
            [&, plan = plan] { return describe(name, test, plan); });
      }
    }
  }
}

void test_case(const Case& test) {
  const Extents& e = test.extents;
  const Array<T> a({e.images, 1, e.channels, e.positions}, test.activations);
  const Array<T> g(e, test.gradients);
  for (double eps : {0, 1, 100})
    for_methods(F(eps), [&](const std::string& name, const auto& method) {
      if (!tested_with(eps, name)) return;
      const bool rectify = name != "xgradcam" && name != "layercam";
      test_method(name, eps, method, test, a, g, rectify);
      if constexpr (has_channel_weights<std::decay_t<decltype(method)>>)
        test_weights(name, eps, method, test, a, g);
    });

  std::vector<F> given(e.images * e.classes * e.channels);
  for (F& weight : given) weight = static_cast<F>(normal());
  std::vector<double> weights(given.begin(), given.end());
  const GivenWeights<F> own{given.data(), e.classes * e.channels, e.channels};
  test_method("given", 0, own, test, a, a, true, &weights);
  for (int64_t n = 0; n < e.images; ++n)  // the same for all images
    std::copy_n(
        given.begin(), e.classes * e.channels, weights.begin() + n * e.classes * e.channels);
  const GivenWeights<F> shared{given.data(), 0, e.channels};
  test_method("given to all images", 0, shared, test, a, a, false, &weights);
}

// A map that is NaN where the image has NaN, and no other image's
void test_nan() {
  const Extents e{2, 1, 5, 9};
  Array<T> a(e, Layout::kContiguous), g(e, Layout::kContiguous);
  a.at(0, 0, 2, 3) = stored<T>(kNaN);
  const auto [plan, maps] =
      run_cam(a, g, e, HiResCAM<F>{}, Device{4, 100 << 10, 100 << 10}, CamOutput::kRectifiedMaps);
  for (int64_t i = 0; i < 18; ++i) expect(std::isnan(maps[i]) == (i == 3), "NaN of one position");
}

// Sums over many channels of one sign stay right: they are no chains.
void test_long_sums() {
  const Extents e{1, 1, 4096, 49};
  for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
    Array<T> a(e, layout), g(e, layout);
    a.buffer.fill(stored<T>(0.1));
    g.buffer.fill(stored<T>(1));
    const auto [plan, maps] =
        run_cam(a, g, e, HiResCAM<F>{}, Device{1, 99 << 10, 100 << 10}, CamOutput::kRectifiedMaps);
    const double want = 4096 * double{load(stored<T>(0.1))};
    for (F value : maps) expect_near(value, want, kRounding<T> * want, "a sum over 4096 channels");
  }
}

}  // namespace

int main() {
  // ThreadSanitizer's time grows with the square of the threads: few blocks
  constexpr int64_t kWideBlocks = kSanitized ? 6 : 64;
  constexpr Device kSmall{4, 99 << 10, 100 << 10};            // one slice or two
  constexpr Device kTight{4, 12 << 10, 12 << 10};             // one stage, few classes at a time
  constexpr Device kWide{kWideBlocks, 163 << 10, 164 << 10};  // many slices, and a second launch
  const Layout contiguous = Layout::kContiguous, last = Layout::kChannelsLast;

  for (const Device& device : {kSmall, kTight, kWide}) {
    for (Layout layout : kLayouts) test_case({{2, 1, 37, 49}, layout, layout, device});
    test_case({{1, 3, 16, 12}, contiguous, contiguous, device});
    test_case({{1, 3, 35, 12}, last, last, device});
    test_case({{1, 1, 5, 1}, last, last, device});
    test_case({{1, 2, 24, 8}, contiguous, last, device});
    test_case({{1, 2, 20, 9}, last, Layout::kExpanded, device});
    test_case({{1, 1, 16, 12}, contiguous, Layout::kRepeated, device});
    for (Layout layout : {contiguous, last}) test_case({{2, 2, 0, 9}, layout, layout, device});
    if (kSanitized) continue;
    test_case({{3, 10, 9, 30}, contiguous, contiguous, device});
    test_case({{1, 2, 70, 33}, last, contiguous, device});
    test_case({{1, 1, 8, 300}, contiguous, Layout::kExpanded, device});
    test_case({{1, 1, 100, 300}, last, last, device});
    test_case({{2, 1, 1, 1}, contiguous, contiguous, device});
    test_case({{1, 2, 64, 64}, Layout::kUnaligned, Layout::kUnaligned, device});
    test_case({{1, 1, 33, 257}, last, Layout::kUnaligned, device});
  }
  // windows of positions
  for (const Device& device : {kSmall, kWide}) {
    test_case({{1, 1, 4, 1031}, contiguous, contiguous, device});
    test_case({{1, 1, 8, 2100}, contiguous, contiguous, device});
    test_case({{1, 2, 33, 131}, last, last, device});
    test_case({{1, 1, 8, 2101}, Layout::kPadded, Layout::kPadded, device});
  }
  // tiles of many rounds of copies, and many tiles a block
  if (!kSanitized) {
    test_case({{1, 1, 3, 16384 / sizeof(T)}, contiguous, contiguous, kSmall});
    test_case({{5, 1, 36, 1024}, contiguous, contiguous, kSmall});
    test_case({{5, 1, 160, 128}, last, last, kSmall});
  }
  // rows of an odd length: 16-byte starts would take more channels than fit
  if (!kSanitized) test_case({{1, 1, 9, 2025}, contiguous, contiguous, {4, 62 << 10, 64 << 10}});
  test_long_sums();
  test_nan();
  return report();
}
