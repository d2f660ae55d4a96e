// Runs CUDA kernels on the CPU, compiled by g++: included before a kernel header.
//
// A thread of a block is a fiber, and to ThreadSanitizer a thread of its own, which nothing orders with the
// others but the kernel's barriers: a missing one is reported however the fibers happen to be scheduled.
// Each block has an operating system's thread; neighbours in the grid run at the same time. Static shared
// memory is thread_local, so that each block has its own.
//
// What CUDA leaves undefined ends the process with a message: see fail().
//
// With FASTCAM_PTX the same launches run what nvcc made of the kernels: see tests/ptx/launch.h.
#pragma once

#if defined(FASTCAM_PTX)
#include "launch.h"
#endif

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  unsigned count() const { return x * y * z; }
};

#if defined(__SANITIZE_THREAD__)
extern "C" {
void* __tsan_create_fiber(unsigned);
void* __tsan_get_current_fiber();
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
void __tsan_ignore_thread_begin();
void __tsan_ignore_thread_end();
}
#define EMULATOR_HIDDEN __attribute__((no_sanitize("thread"), noinline))
#else
#define EMULATOR_HIDDEN
#endif

#if defined(__x86_64__)
// Saves what a function must keep, and goes on where `to` stopped: swapcontext without its system call.
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
  .text
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#endif

namespace emulator {

constexpr unsigned kWarp = 32, kMaxThreads = 1024;
constexpr size_t kMaxSharedBytes = 227 * 1024;
constexpr int kPoison = 0xff;  // NaN in every floating-point type

[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "emulator: %s\n", what.c_str());
  std::_Exit(1);
}

// ---- what ThreadSanitizer sees ----

#if defined(__SANITIZE_THREAD__)
// While it lives: the emulator's own data, which fibers share without locks
struct Unseen {
  Unseen() { __tsan_ignore_thread_begin(); }
  ~Unseen() { __tsan_ignore_thread_end(); }
};
inline void* create_sanitizer_fiber() {
  return __tsan_create_fiber(0);
}
inline void* current_sanitizer_fiber() {
  return __tsan_get_current_fiber();
}
// Orders nothing.
EMULATOR_HIDDEN inline void switch_sanitizer(void* fiber) {
  __tsan_switch_to_fiber(fiber, 1);
}
inline void release(void* tag) {
  __tsan_release(tag);
}
inline void acquire(void* tag) {
  __tsan_acquire(tag);
}
#else
struct Unseen {
  Unseen() {}
};
inline void* create_sanitizer_fiber() {
  return nullptr;
}
inline void* current_sanitizer_fiber() {
  return nullptr;
}
inline void switch_sanitizer(void*) {}
inline void release(void*) {}
inline void acquire(void*) {}
#endif

// ---- threads, blocks ----

// A place in the code with a stack of its own
class Context {
 public:
#if defined(__x86_64__)
  void start(char* stack, size_t size, void (*function)()) {
    const uintptr_t top = reinterpret_cast<uintptr_t>(stack + size) / 16 * 16;
    void** words = reinterpret_cast<void**>(top) - 8;  // six registers, then where to return to
    std::fill_n(words, 8, nullptr);
    words[6] = reinterpret_cast<void*>(function);
    stack_ = words;
  }
  EMULATOR_HIDDEN void switch_to(Context& other) { emulator_switch(&stack_, other.stack_); }

 private:
  void* stack_ = nullptr;
#else
  void start(char* stack, size_t size, void (*function)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = size;
    context_.uc_link = nullptr;
    makecontext(&context_, function, 0);
  }
  EMULATOR_HIDDEN void switch_to(Context& other) { swapcontext(&context_, &other.context_); }

 private:
  ucontext_t context_;
#endif
};

struct Configuration {
  dim3 blocks, threads;
  size_t shared_bytes = 0;  // dynamic
};

// Threads that wait for each other, at `what`
struct Meeting {
  unsigned expected = 0, arrived = 0, generation = 0;
  const char* what = nullptr;
  char tags[2] =
      {};  // of odd and even generations: late leavers do not see the next one's arrivals
};

struct Copy {
  void* to;
  const void* from;
  size_t bytes;

  // Until it lands, its target holds poison.
  void issue() const { std::memset(to, kPoison, bytes); }
  void land() const { std::memcpy(to, from, bytes); }
};

struct Warp {
  Meeting meeting;
  unsigned left = 0;              // lanes whose kernel has ended
  uint64_t slots[2][kWarp] = {};  // what each lane offers, of odd and even generations
};

struct Fiber {
  static constexpr size_t kStack = 128 * 1024;
  Context context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  void* sanitizer = create_sanitizer_fiber();
  dim3 index;
  unsigned number;
  bool ended;
  const Meeting* meeting;  // where it waits, until the generation is over
  unsigned generation;
  std::vector<std::vector<Copy>> groups;  // committed copies
  std::vector<Copy> copies;               // not committed yet
};

struct Block {
  Configuration configuration;
  dim3 index;
  unsigned char* memory = nullptr;
  std::map<const void*, size_t> statics;  // bytes of each array of static shared memory
  std::deque<Warp> warps;
  Meeting all;
  unsigned refused[2] = {};  // the latest odd and even generation in which a thread said no
  std::deque<Fiber>* fibers = nullptr;
  std::function<void()> kernel;
  Context scheduler;
  void* scheduler_sanitizer = nullptr;
  Fiber* running = nullptr;
  uint64_t events = 0;  // counts whatever brings a thread on
  char start = 0, end = 0;
};

inline thread_local Block* block_of_thread = nullptr;

EMULATOR_HIDDEN inline Block& block() {
  return *block_of_thread;
}
EMULATOR_HIDDEN inline Fiber& self() {
  return *block_of_thread->running;
}
EMULATOR_HIDDEN inline dim3 thread_index() {
  return block_of_thread->running->index;
}
EMULATOR_HIDDEN inline dim3 block_index() {
  return block_of_thread->index;
}
EMULATOR_HIDDEN inline dim3 block_extent() {
  return block_of_thread->configuration.threads;
}
EMULATOR_HIDDEN inline dim3 grid_extent() {
  return block_of_thread->configuration.blocks;
}

// To the scheduler, and back when it is this thread's turn again
EMULATOR_HIDDEN inline void yield() {
  Block& b = block();
  Fiber& fiber = self();
  switch_sanitizer(b.scheduler_sanitizer);
  fiber.context.switch_to(b.scheduler);
}

// Whether a launch asks for more shared memory than a block gets unasked; set by those who launch
inline bool (*asks_for_memory)(int64_t static_bytes, int64_t dynamic_bytes) = nullptr;

inline void count_static(const void* array, size_t bytes) {
  constexpr size_t kUnasked = 48 * 1024;
  Block& b = block();
  if (!b.statics.emplace(array, bytes).second) return;
  size_t fixed = 0;
  for (const auto& [place, size] : b.statics) fixed += size;
  const size_t dynamic = b.configuration.shared_bytes, all = fixed + dynamic;
  const bool asked = asks_for_memory && asks_for_memory(fixed, dynamic);
  // nobody can ask for static memory
  if (fixed > kUnasked || all > kMaxSharedBytes || (all > kUnasked && !asked))
    fail("too much shared memory");
}

// Arrives, and returns when all have.
inline void meet(Meeting& meeting, const char* what) {
  Block& b = block();
  if (meeting.arrived > 0 && std::strcmp(meeting.what, what) != 0)
    fail(std::string("threads meet at ") + meeting.what + " and " + what);
  meeting.what = what;
  Fiber& fiber = self();
  fiber.meeting = &meeting;
  fiber.generation = meeting.generation;
  ++b.events;
  if (++meeting.arrived == meeting.expected) {
    meeting.arrived = 0;
    ++meeting.generation;
  }
  if (meeting.generation == fiber.generation) yield();
  fiber.meeting = nullptr;
}

inline void synchronize(Meeting& meeting, const char* what) {
  const Unseen unseen;
  char* tag = &meeting.tags[meeting.generation % 2];
  release(tag);
  meet(meeting, what);
  acquire(tag);
}

// The barrier of the block, at which its threads say yes or no: whether all say yes
inline bool agree(bool predicate) {
  Block& b = block();
  const unsigned generation = b.all.generation + 1;  // 0: none
  unsigned& refused = b.refused[generation % 2];
  {
    const Unseen unseen;
    if (!predicate) refused = generation;
  }
  synchronize(b.all, "__syncthreads_and");
  const Unseen unseen;
  return refused != generation;
}

inline Warp& warp() {
  Warp& result = block().warps[self().number / kWarp];
  if (result.left > 0) fail("a warp meets, but threads of it have ended");
  return result;
}

inline void require_whole_warp(unsigned mask) {
  if (mask != 0xffffffffu) fail("only whole warps are emulated");
}

// What every lane offers. A shuffle or vote does not order memory accesses.
template <class F>
const uint64_t* exchange(unsigned mask, const char* what, F value) {
  static_assert(sizeof(F) <= sizeof(uint64_t));
  const Unseen unseen;
  require_whole_warp(mask);
  Warp& w = warp();
  uint64_t* slots = w.slots[w.meeting.generation % 2];
  std::memcpy(&slots[self().number % kWarp], &value, sizeof(F));
  meet(w.meeting, what);
  return slots;
}

template <class F>
F offered(const uint64_t* slots, unsigned lane) {
  const Unseen unseen;
  F value;
  std::memcpy(&value, &slots[lane], sizeof(F));
  return value;
}

inline unsigned vote(unsigned mask, const char* what, bool predicate) {
  const uint64_t* slots = exchange(mask, what, predicate);
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane)
    ballot |= static_cast<unsigned>(offered<bool>(slots, lane)) << lane;
  return ballot;
}

// A thread whose kernel has ended is no longer waited for by the barriers of its block.
inline void leave() {
  const Unseen unseen;
  Block& b = block();
  Fiber& fiber = self();
  if (!fiber.groups.empty() || !fiber.copies.empty()) fail("a kernel ends before its copies");
  Warp& w = b.warps[fiber.number / kWarp];
  if (w.meeting.arrived > 0) fail("a warp meets, but threads of it have ended");
  ++w.left;
  ++b.events;
  fiber.ended = true;
  if (--b.all.expected == b.all.arrived && b.all.arrived > 0) {
    b.all.arrived = 0;
    ++b.all.generation;
  }
}

EMULATOR_HIDDEN inline void run_fiber() {
  acquire(&block().start);
  block().kernel();
  leave();
  release(&block().end);
  yield();
}

// One block's threads from start to end, forwards and backwards in turns.
inline void run_threads(Block& b) {
  const Unseen unseen;
  const unsigned count = b.configuration.threads.count();
  block_of_thread = &b;
  b.statics.clear();
  b.memory = static_cast<unsigned char*>(
      ::operator new(b.configuration.shared_bytes, std::align_val_t{128}));
  std::memset(b.memory, kPoison, b.configuration.shared_bytes);
  b.warps.clear();
  b.warps.resize(count / kWarp);
  for (Warp& w : b.warps) w.meeting.expected = kWarp;
  b.all = Meeting{};
  b.all.expected = count;
  b.refused[0] = b.refused[1] = 0;
  while (b.fibers->size() < count) b.fibers->emplace_back();
  b.scheduler_sanitizer = current_sanitizer_fiber();
  for (unsigned number = 0; number < count; ++number) {
    Fiber& fiber = (*b.fibers)[number];
    const dim3 extent = b.configuration.threads;
    fiber.number = number;
    fiber.index = {number % extent.x, number / extent.x % extent.y, number / extent.x / extent.y};
    fiber.ended = false;
    fiber.meeting = nullptr;
    fiber.context.start(fiber.stack.get(), Fiber::kStack, run_fiber);
  }
  release(&b.start);
  bool backwards = false;
  for (unsigned left = count; left > 0; backwards = !backwards) {
    const uint64_t events = b.events;
    for (unsigned i = 0; i < count; ++i) {
      Fiber& fiber = (*b.fibers)[backwards ? count - 1 - i : i];
      const Meeting* meeting = fiber.meeting;
      if (fiber.ended || (meeting && meeting->generation == fiber.generation)) continue;
      b.running = &fiber;
      switch_sanitizer(fiber.sanitizer);
      b.scheduler.switch_to(fiber.context);
      left -= fiber.ended;
    }
    if (left > 0 && b.events == events) fail("threads of a block wait for what never comes");
  }
  acquire(&b.end);
  ::operator delete(b.memory, std::align_val_t{128});
}

// kernel() for the threads of the whole grid
inline void run_grid(const Configuration& configuration, const std::function<void()>& kernel) {
  constexpr unsigned kAtOnce = 2;
  static std::deque<std::deque<Fiber>> fibers(kAtOnce);
  const unsigned threads = configuration.threads.count(), blocks = configuration.blocks.count();
  const dim3 grid = configuration.blocks;
  if (threads == 0 || threads > kMaxThreads)
    fail("a block of " + std::to_string(threads) + " threads");
  if (threads % kWarp != 0) fail("a block of broken warps");
  if (configuration.shared_bytes > kMaxSharedBytes) fail("too much shared memory");
  std::vector<std::thread> workers;
  for (unsigned first = 0; first < std::min(kAtOnce, blocks); ++first) {
    workers.emplace_back([&, first] {
      Block b;
      b.configuration = configuration;
      b.fibers = &fibers[first];
      b.kernel = kernel;
      for (unsigned number = first; number < blocks; number += kAtOnce) {
        b.index = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
        run_threads(b);
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
}

// kernel<<<...>>>(arguments...)
template <class... Parameters>
void launch(
    void (*kernel)(Parameters...), const Configuration& configuration,
    std::type_identity_t<Parameters>... arguments) {
#if defined(FASTCAM_PTX)
  const auto extent = [](dim3 d) { return ptx::Extent{d.x, d.y, d.z}; };
  const uint32_t shared_bytes = configuration.shared_bytes;
  ptx::launch(
      reinterpret_cast<const void*>(kernel),
      {extent(configuration.blocks), extent(configuration.threads), shared_bytes, asks_for_memory},
      {{&arguments, sizeof(arguments)}...});
#else
  run_grid(configuration, [&] { kernel(arguments...); });
#endif
}

}  // namespace emulator

#define threadIdx emulator::thread_index()
#define blockIdx emulator::block_index()
#define blockDim emulator::block_extent()
#define gridDim emulator::grid_extent()

// ---- CUDA's functions ----

inline void __syncthreads() {
  emulator::synchronize(emulator::block().all, "__syncthreads");
}

// Whether all threads of the block say so
inline bool __syncthreads_and(bool predicate) {
  return emulator::agree(predicate);
}

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  emulator::require_whole_warp(mask);
  emulator::synchronize(emulator::warp().meeting, "__syncwarp");
}

template <class F>
F __shfl_xor_sync(unsigned mask, F value, int offset) {
  const uint64_t* slots = emulator::exchange(mask, "__shfl_xor_sync", value);
  const unsigned lane = (emulator::self().number % emulator::kWarp) ^ offset;
  return lane < emulator::kWarp ? emulator::offered<F>(slots, lane) : value;
}

template <class F>
F __shfl_sync(unsigned mask, F value, int lane) {
  const uint64_t* slots = emulator::exchange(mask, "__shfl_sync", value);
  return emulator::offered<F>(slots, static_cast<unsigned>(lane) % emulator::kWarp);
}

template <class F>
F __shfl_down_sync(unsigned mask, F value, unsigned offset) {
  const uint64_t* slots = emulator::exchange(mask, "__shfl_down_sync", value);
  const unsigned lane = emulator::self().number % emulator::kWarp + offset;
  return lane < emulator::kWarp ? emulator::offered<F>(slots, lane) : value;
}

inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  return emulator::vote(mask, "__ballot_sync", predicate);
}

inline bool __any_sync(unsigned mask, bool predicate) {
  return emulator::vote(mask, "__any_sync", predicate) != 0;
}

inline bool __all_sync(unsigned mask, bool predicate) {
  return emulator::vote(mask, "__all_sync", predicate) == 0xffffffffu;
}

// Fences order what atomics, which order nothing by themselves, make known.
inline void __threadfence() {
  static std::atomic<unsigned> fence;
  fence.fetch_add(1, std::memory_order_acq_rel);
}

template <class I>
I atomicAdd(I* address, std::type_identity_t<I> value) {
  return std::atomic_ref<I>(*address).fetch_add(value, std::memory_order_relaxed);
}

// (old >= limit) ? 0 : old + 1
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  const std::atomic_ref<unsigned> value(*address);
  unsigned old = value.load(std::memory_order_relaxed);
  while (!value.compare_exchange_weak(old, old >= limit ? 0 : old + 1, std::memory_order_relaxed)) {
  }
  return old;
}

// ---- the functions of kernels/device.cuh ----

namespace fastcam {

inline unsigned char* shared_memory() {
  return emulator::block().memory;
}

// An array of the block's static shared memory, counted beside the dynamic one
template <class Tag, class T, int kCount>
T (&static_memory())
[kCount] {
  static thread_local T memory[kCount];
  const emulator::Unseen unseen;
  emulator::count_static(memory, sizeof(memory));
  return memory;
}

inline void require_aligned(const void* shared, const void* global, size_t bytes) {
  if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global) | bytes) % 16 != 0)
    emulator::fail("a copy is not aligned to 16 bytes");
}

inline void copy_async(void* shared, const void* global) {
  require_aligned(shared, global, 16);
  const emulator::Copy copy{shared, global, 16};
  copy.issue();
  const emulator::Unseen unseen;
  emulator::self().copies.push_back(copy);
}

inline void commit_copies() {
  const emulator::Unseen unseen;
  emulator::Fiber& self = emulator::self();
  self.groups.push_back(std::move(self.copies));
  self.copies.clear();
}

template <int kPending>
void wait_for_copies() {
  for (;;) {
    std::vector<emulator::Copy> group;
    {
      const emulator::Unseen unseen;
      auto& groups = emulator::self().groups;
      if (groups.size() <= kPending) return;
      group = std::move(groups.front());
      groups.erase(groups.begin());
    }
    for (const emulator::Copy& copy : group) copy.land();
  }
}

}  // namespace fastcam
