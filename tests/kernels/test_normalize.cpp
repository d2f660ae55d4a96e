// Min-max over each map, by one block and by several.
#include "testing.h"

#include "kernels/normalize.cuh"

using namespace fastcam;

namespace {

// Ordinary maps, a constant one, and one with NaN at its end
template <class T>
void test_normalize(int64_t positions, int64_t shares, double eps, bool unaligned) {
  using F = arithmetic_t<T>;
  constexpr int64_t kMaps = 4, kConstant = 1, kBroken = 2;
  Buffer<T> maps(kMaps * positions, unaligned);
  Buffer<F> result(kMaps * positions, unaligned);
  maps.fill_normal();
  result.fill(F(7));
  for (int64_t p = 0; p < positions; ++p) maps[kConstant * positions + p] = stored<T>(3);
  maps[kBroken * positions + positions - 1] = stored<T>(kNaN);

  std::vector<Extremes<F>> extremes(kMaps * shares);
  if (shares > 1)
    emulator::launch(
        extremes_kernel<T>, grid(kMaps * shares), maps.data(), positions, shares, extremes.data());
  emulator::launch(
      normalize_kernel<T>, grid(kMaps * shares), maps.data(), positions, shares,
      shares > 1 ? extremes.data() : nullptr, F(eps), result.data());

  for (int64_t n = 0; n < kMaps; ++n) {
    double low = INFINITY, high = -INFINITY;
    for (int64_t p = 0; p < positions; ++p) {
      low = std::min<double>(low, load(maps[n * positions + p]));
      high = std::max<double>(high, load(maps[n * positions + p]));
    }
    for (int64_t p = 0; p < positions; ++p) {
      const double value = load(maps[n * positions + p]), range = high - low + eps;
      const double want = n == kBroken ? kNaN : range == 0 ? 0 : (value - low) / range;
      expect_near(
          result[n * positions + p], want, kRounding<T>,
          "normalize map " + std::to_string(n) + " of " + std::to_string(positions));
    }
  }
}

template <class T>
void test_type() {
  for (bool unaligned : {false, true}) {
    for (int64_t positions : {1, 2, 7, 301, 256 * kVector<float> * 2 + 3}) {
      test_normalize<T>(positions, 1, 0, unaligned);
      test_normalize<T>(positions, 2, 0.5, unaligned);
    }
    test_normalize<T>(kThreads * 5 * 8 + 9, 3, 0, unaligned);
    test_normalize<T>(3, 5, 0, unaligned);  // more blocks than values
  }
}

}  // namespace

int main() {
  for_types([](auto element) { test_type<decltype(element)>(); });
  return report();
}
