// Threads and instruction sets: how the loops of this folder use the whole processor.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

// A function compiled for several instruction sets, the best one chosen when the library is loaded. All
// that it calls is inlined into each version.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define FASTCAM_MULTIVERSION __attribute__((target_clones("default", "arch=x86-64-v3"), flatten))
#else
#define FASTCAM_MULTIVERSION
#endif

// Behind the parameters of a lambda: inlined, so compiled for the instruction set of its caller.
#define FASTCAM_INLINED __attribute__((always_inline))

namespace fastcam::cpu {

// body(wide), compiled for x86-64-v3 (wide is true) where the processor has that, else for the least that the
// compiler may use. A body and the lambdas in it are FASTCAM_INLINED.
#if defined(__x86_64__) && defined(__GNUC__)
template <class Body>
__attribute__((target("arch=x86-64-v3"))) void run_wide(const Body& body) {
  body(std::true_type{});
}
template <class Body>
void vectorized(const Body& body) {
  static const bool wide = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
  if (wide) {
    run_wide(body);
  } else {
    body(std::false_type{});
  }
}
#else
template <class Body>
void vectorized(const Body& body) {
  body(std::false_type{});
}
#endif

// What a thread gets at least: for less, starting it takes longer than it saves.
constexpr int64_t kElementsPerThread = 32768;

// f(task) for every task, each of about `elements` elements
template <class Function>
void parallel_tasks(int64_t tasks, int64_t elements, const Function& f) {
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, elements));
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) f(task);
  });
}

}  // namespace fastcam::cpu
