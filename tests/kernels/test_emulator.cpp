// The emulator itself. Without an argument: what has to work. With the name of a fault: a kernel that has it,
// for a test which looks for the report.
#include "emulator.h"

#include <cstdio>
#include <map>
#include <numeric>

#include "kernels/device.cuh"

using namespace fastcam;

namespace {

constexpr unsigned kThreads = 64;

// ---- kernels that are right ----

__global__ void reverse_kernel(const int* source, int* target) {
  int* shared = reinterpret_cast<int*>(shared_memory());
  const unsigned i = threadIdx.x;
  shared[i] = source[blockIdx.x * blockDim.x + i];
  __syncthreads();
  target[blockIdx.x * blockDim.x + i] = shared[blockDim.x - 1 - i];
}

__global__ void warp_kernel(unsigned* wrong) {
  auto& shared = static_memory<struct Shared, int, kThreads>();
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int value = static_cast<int>(threadIdx.x) * 3;
  bool right = __shfl_xor_sync(~0u, value, 5) == static_cast<int>(threadIdx.x ^ 5) * 3;
  right &= __shfl_sync(~0u, value, 7) == static_cast<int>(warp * 32 + 7) * 3;
  right &= __shfl_down_sync(~0u, double(value), 4) == (lane < 28 ? value + 12 : value);
  right &= __ballot_sync(~0u, lane % 2) == 0xaaaaaaaau;
  right &= __any_sync(~0u, threadIdx.x == 40) == (warp == 1);
  right &= __all_sync(~0u, threadIdx.x < 40) == (warp == 0);
  shared[threadIdx.x] = value;
  __syncwarp();
  right &= shared[threadIdx.x ^ 1] == static_cast<int>(threadIdx.x ^ 1) * 3;
  if (!right) atomicAdd(wrong, 1);
}

__global__ void grid_kernel(unsigned* seen) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  ++seen[block * blockDim.count() + thread];
}

// The last block to come adds up what all have written.
__global__ void last_block_kernel(const int* source, int* partial, unsigned* ticket, int* total) {
  bool& last = static_memory<struct Last, bool, 1>()[0];
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = source[blockIdx.x];
    __threadfence();
    last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (last && threadIdx.x == 1) *total = std::accumulate(partial, partial + gridDim.x, 0);
}

// Rounds of 16 bytes a thread, two groups under way
__global__ void copy_async_kernel(const int* source, int rounds, int* target) {
  int* own = reinterpret_cast<int*>(shared_memory()) + threadIdx.x * 8;
  const auto fetch = [&](int round) {
    if (round < rounds)
      copy_async(own + round % 2 * 4, source + (round * blockDim.x + threadIdx.x) * 4);
    commit_copies();
  };
  fetch(0);
  for (int round = 0; round < rounds; ++round) {
    fetch(round + 1);
    wait_for_copies<1>();
    for (int i = 0; i < 4; ++i)
      target[(round * blockDim.x + threadIdx.x) * 4 + i] = own[round % 2 * 4 + i];
  }
  wait_for_copies<0>();
}

// Threads that have ended are not waited for.
__global__ void early_kernel(int* target) {
  if (threadIdx.x >= 32) return;
  __syncthreads();
  target[threadIdx.x] = 1;
}

// ---- kernels with a fault ----

__global__ void missing_barrier_kernel(int* target) {
  auto& shared = static_memory<struct Shared, int, kThreads>();
  shared[threadIdx.x] = threadIdx.x;
  target[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
}

// A shuffle is no barrier.
__global__ void missing_warp_barrier_kernel(int* target) {
  auto& shared = static_memory<struct Shared, int, kThreads>();
  shared[threadIdx.x] = __shfl_xor_sync(~0u, static_cast<int>(threadIdx.x), 1);
  const int other = __shfl_xor_sync(~0u, static_cast<int>(threadIdx.x), 2);
  target[threadIdx.x] = other + shared[threadIdx.x ^ 1];
}

// The next round overwrites what slow threads still read.
__global__ void missing_second_barrier_kernel(int* target) {
  auto& shared = static_memory<struct Shared, int, kThreads>();
  for (int round = 0; round < 2; ++round) {
    shared[threadIdx.x] = threadIdx.x + round;
    __syncthreads();
    target[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
  }
}

__global__ void blocks_race_kernel(int* target) {
  target[threadIdx.x] = blockIdx.x;
}

__global__ void missing_fence_kernel(int* partial, unsigned* ticket, int* total) {
  if (threadIdx.x > 0) return;
  partial[blockIdx.x] = 1;
  if (atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1)
    *total = std::accumulate(partial, partial + gridDim.x, 0);
}

__global__ void read_before_wait_kernel(const float* source, float* target, bool wait) {
  float* own = reinterpret_cast<float*>(shared_memory()) + threadIdx.x * 4;
  copy_async(own, source + threadIdx.x * 4);
  commit_copies();
  if (wait) wait_for_copies<1>();  // for all but the latest group: not for this one
  target[threadIdx.x] = own[1];
  wait_for_copies<0>();
}

// Each thread has waited for its own copy, not for its neighbour's.
__global__ void copies_without_barrier_kernel(const float* source, float* target) {
  float* shared = reinterpret_cast<float*>(shared_memory());
  copy_async(shared + threadIdx.x * 4, source + threadIdx.x * 4);
  commit_copies();
  wait_for_copies<0>();
  target[threadIdx.x] = shared[(threadIdx.x ^ 1) * 4];
}

__global__ void never_waits_kernel(const float* source) {
  copy_async(shared_memory() + threadIdx.x * 16, source + threadIdx.x * 4);
  commit_copies();
}

__global__ void misaligned_kernel(const float* source) {
  copy_async(shared_memory() + threadIdx.x * 16, source + threadIdx.x * 4 + 1);
}

__global__ void divergent_kernel() {
  if (threadIdx.x % 2)
    __syncwarp();
  else
    __shfl_xor_sync(~0u, 1, 1);
}

__global__ void deadlock_kernel() {
  if (threadIdx.x == 0)
    __syncthreads();
  else
    __syncwarp();
}

__global__ void dynamic_overflow_kernel() {
  shared_memory()[threadIdx.x + 1] = 0;
}

__global__ void static_overflow_kernel(int* target, unsigned bound) {
  auto& shared = static_memory<struct Shared, int, kThreads>();
  for (unsigned i = threadIdx.x; i < bound; i += blockDim.x) target[i] = shared[i];
}

// 48 KiB together, and 16 bytes
__global__ void static_and_dynamic_kernel() {
  static_memory<struct Sixteen, int, 4>()[0] = 0;
}

// More than a block has, whatever it asks for
__global__ void static_kernel() {
  static_memory<struct Many, int, 12 * 1024 + 1>()[0] = 0;
}

__global__ void empty_kernel() {}

// ---- runs ----

int failures = 0;

void expect(bool condition, const char* what) {
  if (condition) return;
  ++failures;
  std::printf("FAILED %s\n", what);
}

void expect_all(
    const std::vector<int>& got, const std::function<int(int)>& want, const char* what) {
  for (size_t i = 0; i < got.size(); ++i) expect(got[i] == want(static_cast<int>(i)), what);
}

void run_all() {
  constexpr int kBlocks = 5, kRounds = 5, kCount = kThreads;
  std::vector<int> source(4 * kRounds * kCount), target(kBlocks * kCount, -1);
  std::iota(source.begin(), source.end(), 0);
  const dim3 threads{kThreads};

  emulator::launch(
      reverse_kernel, {dim3{kBlocks}, threads, kThreads * 4}, source.data(), target.data());
  expect_all(
      target, [](int i) { return i / kCount * kCount + kCount - 1 - i % kCount; }, "reverse");

  unsigned wrong = 0;
  emulator::launch(warp_kernel, {dim3{}, threads}, &wrong);
  expect(wrong == 0, "shuffles and votes");

  std::vector<unsigned> seen(2 * 3 * 4 * 64);
  emulator::launch(grid_kernel, {dim3{2, 3, 4}, dim3{4, 8, 2}}, seen.data());
  expect(seen == std::vector<unsigned>(seen.size(), 1), "a grid of three dimensions");

  std::vector<int> partial(kBlocks);
  unsigned ticket = 0;
  int total = 0;
  for (int i = 0; i < 2; ++i) {
    emulator::launch(
        last_block_kernel, {dim3{kBlocks}, dim3{32}}, source.data(), partial.data(), &ticket,
        &total);
    expect(total == 10 && ticket == 0, "the last block");
    total = 0;
  }

  std::vector<int> copied(source.size(), -1);
  emulator::launch(
      copy_async_kernel, {dim3{}, threads, kThreads * 32}, source.data(), kRounds, copied.data());
  expect(copied == source, "copy_async");

  std::vector<int> early(32);
  emulator::launch(early_kernel, {dim3{}, threads}, early.data());
  expect_all(early, [](int) { return 1; }, "threads that end early");
}

// A value that was read before it had come is poison.
void report_poison(const std::vector<float>& values) {
  for (float value : values)
    if (value != value) emulator::fail("poison was read");
}

void run_fault(const std::string& name) {
  const dim3 one{}, two{2}, threads{kThreads};
  alignas(16) static float source[kThreads * 4 + 4];
  static int target[2 * kThreads];
  static unsigned ticket = 0;
  std::vector<float> values(kThreads);
  const std::map<std::string, std::function<void()>> faults = {
      {"missing_barrier",
       [&] { emulator::launch(missing_barrier_kernel, {one, threads}, target); }},
      {"missing_warp_barrier",
       [&] { emulator::launch(missing_warp_barrier_kernel, {one, threads}, target); }},
      {"missing_second_barrier",
       [&] { emulator::launch(missing_second_barrier_kernel, {one, threads}, target); }},
      {"blocks_race", [&] { emulator::launch(blocks_race_kernel, {two, threads}, target); }},
      {"missing_fence",
       [&] {
         emulator::launch(missing_fence_kernel, {dim3{4}, threads}, target, &ticket, target + 8);
       }},
      {"read_before_wait",
       [&] {
         emulator::launch(
             read_before_wait_kernel, {one, threads, 1024}, source, values.data(), false);
         report_poison(values);
       }},
      {"read_before_last_wait",
       [&] {
         emulator::launch(
             read_before_wait_kernel, {one, threads, 1024}, source, values.data(), true);
         report_poison(values);
       }},
      {"copies_without_barrier",
       [&] {
         emulator::launch(
             copies_without_barrier_kernel, {one, threads, 1024}, source, values.data());
       }},
      {"never_waits", [&] { emulator::launch(never_waits_kernel, {one, threads, 1024}, source); }},
      {"misaligned", [&] { emulator::launch(misaligned_kernel, {one, threads, 1024}, source); }},
      {"divergent", [&] { emulator::launch(divergent_kernel, {one, threads}); }},
      {"deadlock", [&] { emulator::launch(deadlock_kernel, {one, threads}); }},
      {"dynamic_overflow", [&] { emulator::launch(dynamic_overflow_kernel, {one, threads, 64}); }},
      {"static_overflow",
       [&] { emulator::launch(static_overflow_kernel, {one, threads}, target, kThreads + 1); }},
      {"too_many_threads", [&] { emulator::launch(empty_kernel, {one, dim3{32, 33}}); }},
      {"too_much_memory", [&] { emulator::launch(empty_kernel, {one, threads, 227 * 1024 + 1}); }},
      {"static_and_dynamic",
       [&] { emulator::launch(static_and_dynamic_kernel, {one, threads, 48 * 1024}); }},
      {"too_much_static",
       [&] {
         emulator::asks_for_memory = [](int64_t, int64_t) { return true; };
         emulator::launch(static_kernel, {one, threads});
       }},
  };
  faults.at(name)();
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1) {
    run_fault(arguments[1]);
    std::printf("no report\n");
    return 0;
  }
  run_all();
  std::printf("%d failed\n", failures);
  return failures ? 1 : 0;
}
