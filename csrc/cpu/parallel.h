// Threads and instruction sets: how the loops of this folder use the whole processor.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

// A function compiled for several instruction sets, the best one chosen when the library is loaded. All
// that it calls is inlined into each version.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define FASTCAM_MULTIVERSION \
  __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4"), flatten))
#else
#define FASTCAM_MULTIVERSION
#endif

namespace fastcam::cpu {

// f(task) for every task, each of about `elements` elements: threads are used where they pay.
template <class Function>
void parallel_tasks(int64_t tasks, int64_t elements, const Function& f) {
  constexpr int64_t kElementsPerThread = 32768;
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, elements));
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) f(task);
  });
}

}  // namespace fastcam::cpu
