// What the threads of a block do together, one call after another.
#include "testing.h"

#include "kernels/block.cuh"

using namespace fastcam;

namespace {

// Each reduction several times in a row: a call must not disturb threads that are still in the one before.
template <class F>
__global__ void reductions_kernel(const F* values, F* lanes, F* warps, Extremes<F>* extremes) {
  constexpr int kCount = 3 * kThreads;
  const int first = thread_number();
  for (int i = first; i < kCount; i += kThreads) lanes[i] = sum_lanes(values[i]);
  for (int i = first; i < kCount; i += kThreads) warps[i] = sum_warps(values[i]);
  for (int i = first; i < kCount; i += kThreads)
    extremes[i] = block_extremes(Extremes<F>{values[i], values[i]});
}

template <class F>
void test_reductions() {
  constexpr int kRounds = 3;
  Buffer<F> values(kRounds * kThreads), lanes(kRounds * kThreads), warps(kRounds * kThreads);
  std::vector<Extremes<F>> extremes(kRounds * kThreads);
  values.fill_normal();
  values[2 * kThreads + 100] = F(kNaN);
  emulator::launch(
      reductions_kernel<F>, grid(1), values.data(), lanes.data(), warps.data(), extremes.data());
  for (int round = 0; round < kRounds; ++round) {
    const F* v = values.data() + round * kThreads;
    double low = INFINITY, high = -INFINITY;
    for (int i = 0; i < kThreads; ++i) {
      low = v[i] < low ? v[i] : low;
      high = v[i] > high ? v[i] : high;
    }
    if (round == 2) low = high = kNaN;
    for (int i = 0; i < kThreads; ++i) {
      double lane_sum = 0, warp_sum = 0;
      for (int j = 0; j < kLanes; ++j) lane_sum += v[i / kLanes * kLanes + j];
      for (int j = 0; j < kWarps; ++j) warp_sum += v[j * kLanes + i % kLanes];
      const int at = round * kThreads + i;
      expect_near(lanes[at], lane_sum, 20 * kRounding<F>, "sum_lanes");
      expect_near(warps[at], warp_sum, 20 * kRounding<F>, "sum_warps");
      expect_near(extremes[at].low, low, 0, "minimum");
      expect_near(extremes[at].high, high, 0, "maximum");
    }
  }
}

// Runs of a sum are kept in double: a million small terms behind a large one are not lost.
__global__ void sums_kernel(int64_t count, float* sums) {
  float found[2];
  strided_sums(
      int64_t{0}, int64_t{1}, count,
      [&](int64_t i, int j) {
        if (i >= count) return NAN;
        if (i == 0) return 0x1p24f;
        return j == 0 ? 0.25f : 0.5f;
      },
      found);
  if (thread_number() > 0) return;
  sums[0] = found[0];
  sums[1] = found[1];
}

void test_sums() {
  for (int64_t count : {1, 31, 32, 33, 64, 1000, 40001}) {
    float sums[2];
    emulator::launch(sums_kernel, grid(1), count, sums);
    // within a run of 32 the large one swallows the small
    expect_near(sums[0], 0x1p24 + 0.25 * (count - 1), 0.25 * 31 + 1, "a long sum");
    expect_near(sums[1], 0x1p24 + 0.5 * (count - 1), 0.5 * 31 + 1, "the long sum beside it");
  }
}

template <int kCount>
__global__ void packs_kernel(int64_t total, int64_t shares, unsigned* seen) {
  for_packs<kCount>(total, blockIdx.x, shares, [&](int64_t first, int count) {
    for (int j = 0; j < count; ++j) atomicAdd(&seen[first + j], 1);
  });
}

void test_packs() {
  for (int64_t total : {1, 7, 8, 1023, 1024, 1025, 5000}) {
    for (int64_t shares : {1, 3}) {
      std::vector<unsigned> seen(total);
      emulator::launch(packs_kernel<4>, grid(shares), total, shares, seen.data());
      expect(seen == std::vector<unsigned>(total, 1), "each element is in one pack");
    }
  }
}

}  // namespace

int main() {
  test_reductions<float>();
  test_reductions<double>();
  test_sums();
  test_packs();
  return report();
}
