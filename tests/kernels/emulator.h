// Runs CUDA kernels on the CPU, compiled by g++: included before a kernel header.
//
// A thread of a block is a fiber, and to ThreadSanitizer a thread of its own, which nothing orders with the
// others but the kernel's barriers: a missing one is reported however the fibers happen to be scheduled.
// Each block has an operating system's thread; the blocks of a cluster, and neighbours in the grid, run at
// the same time. `__shared__` memory is thread_local, so that each block has its own.
//
// What CUDA leaves undefined ends the process with a message: see fail().
#pragma once

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local

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
void AnnotateIgnoreSyncBegin(const char*, int);
void AnnotateIgnoreSyncEnd(const char*, int);
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

constexpr unsigned kWarp = 32, kMaxThreads = 1024, kMaxCluster = 8;
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
// While it lives: locks that order nothing
struct Unordered {
  Unordered() { AnnotateIgnoreSyncBegin(__FILE__, __LINE__); }
  ~Unordered() { AnnotateIgnoreSyncEnd(__FILE__, __LINE__); }
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
struct Unordered {
  Unordered() {}
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

// ---- threads, blocks, clusters ----

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
  size_t shared_bytes = 0;
  unsigned cluster = 1;  // blocks of one cluster, along x
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

// A barrier of bulk copies. A phase ends when the bytes expected have been issued and a thread waits for it.
struct Phases {
  uint32_t ended = 0;
  bool opened = false;
  uint64_t expected = 0, issued = 0;
  std::vector<Copy> copies;
  char tags[2] = {};  // of even and odd phases
};

struct Cluster;

struct Block {
  Configuration configuration;
  dim3 index;
  unsigned rank = 0;
  Cluster* cluster = nullptr;
  unsigned char* memory = nullptr;
  char* statics = nullptr;
  std::deque<Warp> warps;
  Meeting all, all_of_cluster;
  std::map<uint64_t*, Phases> phases;
  std::deque<Fiber>* fibers = nullptr;
  std::function<void()> kernel;
  Context scheduler;
  void* scheduler_sanitizer = nullptr;
  Fiber* running = nullptr;
  uint64_t events = 0;  // counts whatever brings a thread on
  char start = 0, end = 0;
};

// Where blocks of a cluster wait for each other. A std::barrier orders blocks of other clusters too, by the
// pool of waiters that all of them share: races would be missed.
class Rendezvous {
 public:
  explicit Rendezvous(unsigned blocks) : expected_(blocks) {}

  void arrive_and_wait() {
    std::unique_lock lock(mutex_);
    const unsigned generation = generation_;
    if (++arrived_ == expected_) return open();
    opened_.wait(lock, [&] { return generation_ != generation; });
  }

  void arrive_and_drop() {
    const std::lock_guard lock(mutex_);
    if (--expected_ == arrived_) open();
  }

 private:
  void open() {
    arrived_ = 0;
    ++generation_;
    opened_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable opened_;
  unsigned expected_, arrived_ = 0, generation_ = 0;
};

struct Cluster {
  explicit Cluster(unsigned count) : turn(count), blocks(count) {}
  Rendezvous turn;                   // before and after the cluster runs
  std::unique_ptr<Rendezvous> sync;  // cluster_sync()
  std::vector<Block> blocks;
  char tags[2] = {};
};

inline thread_local Block* block_of_thread = nullptr;
inline thread_local char statics_begin = 0;

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

// Arrives, and returns when all have.
template <class Last>
void meet(Meeting& meeting, const char* what, const Last& last_arrives) {
  Block& b = block();
  if (meeting.arrived > 0 && std::strcmp(meeting.what, what) != 0)
    fail(std::string("threads meet at ") + meeting.what + " and " + what);
  meeting.what = what;
  Fiber& fiber = self();
  fiber.meeting = &meeting;
  fiber.generation = meeting.generation;
  ++b.events;
  if (++meeting.arrived == meeting.expected) {
    last_arrives();
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
  meet(meeting, what, [] {});
  acquire(tag);
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
  meet(w.meeting, what, [] {});
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
  for (Meeting* meeting : {&b.all, &b.all_of_cluster}) {
    if (--meeting->expected == meeting->arrived && meeting->arrived > 0) {
      if (meeting == &b.all_of_cluster) b.cluster->sync->arrive_and_wait();
      meeting->arrived = 0;
      ++meeting->generation;
    }
  }
}

EMULATOR_HIDDEN inline void run_fiber() {
  acquire(&block().start);
  block().kernel();
  leave();
  release(&block().end);
  yield();
}

inline std::string deadlock(const Block& b) {
  for (const auto& [barrier, p] : b.phases)
    if (p.expected != p.issued)
      return "a barrier expects " + std::to_string(p.expected) + " bytes, " +
             std::to_string(p.issued) + " were issued";
  return "threads of a block wait for what never comes";
}

// One block's threads from start to end, forwards and backwards in turns.
inline void run_threads(Block& b) {
  const Unseen unseen;
  const unsigned count = b.configuration.threads.count();
  block_of_thread = &b;
  b.statics = &statics_begin;
  b.memory = static_cast<unsigned char*>(
      ::operator new(b.configuration.shared_bytes, std::align_val_t{128}));
  std::memset(b.memory, kPoison, b.configuration.shared_bytes);
  b.warps.clear();
  b.warps.resize(count / kWarp);
  for (Warp& w : b.warps) w.meeting.expected = kWarp;
  b.all = b.all_of_cluster = Meeting{};
  b.all.expected = b.all_of_cluster.expected = count;
  b.phases.clear();
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
  if (b.rank == 0) b.cluster->sync = std::make_unique<Rendezvous>(b.configuration.cluster);
  b.cluster->turn.arrive_and_wait();
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
    if (left > 0 && b.events == events) fail(deadlock(b));
  }
  acquire(&b.end);
  for (const auto& [barrier, p] : b.phases)
    if (p.opened || p.issued > 0) fail("a kernel ends before its bulk copies");
}

// A block's memory goes before the others of its cluster can know that the block has ended.
inline void run_block(Block& b) {
  run_threads(b);
  ::operator delete(b.memory, std::align_val_t{128});
  {
    const Unseen unseen;
    const Unordered unordered;  // nothing in a kernel waits for the end of another block
    b.cluster->sync->arrive_and_drop();
  }
  b.cluster->turn.arrive_and_wait();
}

// kernel() for the threads of the whole grid
inline void run_grid(const Configuration& configuration, const std::function<void()>& kernel) {
  constexpr unsigned kAtOnce = 2;  // clusters
  static std::deque<std::deque<Fiber>> fibers(kAtOnce * kMaxCluster);
  const unsigned threads = configuration.threads.count(), cluster = configuration.cluster;
  const dim3 grid = configuration.blocks;
  if (threads == 0 || threads > kMaxThreads)
    fail("a block of " + std::to_string(threads) + " threads");
  if (threads % kWarp != 0) fail("a block of broken warps");
  if (configuration.shared_bytes > kMaxSharedBytes) fail("too much shared memory");
  if (cluster == 0 || cluster > kMaxCluster || grid.x % cluster != 0) fail("no whole clusters");
  const unsigned clusters = grid.count() / cluster;
  std::vector<std::thread> workers;
  std::deque<Cluster> running;
  for (unsigned first = 0; first < std::min(kAtOnce, clusters); ++first) {
    Cluster& members = running.emplace_back(cluster);
    for (unsigned rank = 0; rank < cluster; ++rank) {
      workers.emplace_back([&, first, rank] {
        Block& b = members.blocks[rank];
        b.configuration = configuration;
        b.rank = rank;
        b.cluster = &members;
        b.fibers = &fibers[first * kMaxCluster + rank];
        b.kernel = kernel;
        for (unsigned c = first; c < clusters; c += kAtOnce) {
          const unsigned number = c * cluster + rank;
          b.index = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
          run_block(b);
        }
      });
    }
  }
  for (std::thread& worker : workers) worker.join();
}

// kernel<<<...>>>(arguments...)
template <class... Parameters>
void launch(
    void (*kernel)(Parameters...), const Configuration& configuration,
    std::type_identity_t<Parameters>... arguments) {
  run_grid(configuration, [&] { kernel(arguments...); });
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

using CopyBarrier = uint64_t;

inline void init_barrier(CopyBarrier* barrier) {
  *barrier = 0;
  const emulator::Unseen unseen;
  emulator::block().phases[barrier] = {};
}

// The barrier is read as kernels' memory, so that an access before its initialization is known is a race.
inline emulator::Phases& phases_of(CopyBarrier* barrier) {
  const bool initialized = *barrier == 0;
  const emulator::Unseen unseen;
  auto& phases = emulator::block().phases;
  const auto found = phases.find(barrier);
  if (!initialized || found == phases.end()) emulator::fail("a barrier is not initialized");
  return found->second;
}

inline void expect_bytes(CopyBarrier* barrier, uint32_t bytes) {
  emulator::Phases& phases = phases_of(barrier);
  const emulator::Unseen unseen;
  if (phases.opened) emulator::fail("a phase is opened before anyone waited for the one before");
  emulator::release(&phases.tags[phases.ended % 2]);
  phases.opened = true;
  phases.expected = bytes;
  ++emulator::block().events;
}

inline void bulk_copy(void* shared, const void* global, uint32_t bytes, CopyBarrier* barrier) {
  require_aligned(shared, global, bytes);
  const emulator::Copy copy{shared, global, bytes};
  copy.issue();
  emulator::Phases& phases = phases_of(barrier);
  const emulator::Unseen unseen;
  emulator::release(&phases.tags[phases.ended % 2]);
  phases.copies.push_back(copy);
  phases.issued += bytes;
  ++emulator::block().events;
}

inline void wait_barrier(CopyBarrier* barrier, uint32_t phase) {
  emulator::Phases& phases = phases_of(barrier);
  std::vector<emulator::Copy> landing;
  {
    const emulator::Unseen unseen;
    while (phases.ended % 2 == phase && !(phases.opened && phases.issued == phases.expected))
      emulator::yield();
    emulator::acquire(&phases.tags[phase]);
    if (phases.ended % 2 != phase) return;
    landing = std::move(phases.copies);
    phases = {.ended = phases.ended + 1};
    ++emulator::block().events;
  }
  for (const emulator::Copy& copy : landing) copy.land();
  emulator::release(&phases.tags[phase]);
}

inline void cluster_sync() {
  const emulator::Unseen unseen;
  emulator::Block& block = emulator::block();
  char* tag = &block.cluster->tags[block.all_of_cluster.generation % 2];
  emulator::release(tag);
  emulator::meet(
      block.all_of_cluster, "cluster_sync", [&] { block.cluster->sync->arrive_and_wait(); });
  emulator::acquire(tag);
}

// In dynamic memory, or in the static memory of the block's thread
template <class F>
const F* peer_memory(const F* shared, unsigned rank) {
  const emulator::Unseen unseen;
  const emulator::Block& block = emulator::block();
  if (rank >= block.configuration.cluster) emulator::fail("no such block in the cluster");
  const emulator::Block& peer = block.cluster->blocks[rank];
  const char* place = reinterpret_cast<const char*>(shared);
  const char* memory = reinterpret_cast<const char*>(block.memory);
  if (place >= memory && place < memory + block.configuration.shared_bytes)
    return reinterpret_cast<const F*>(peer.memory + (place - memory));
  return reinterpret_cast<const F*>(peer.statics + (place - block.statics));
}

}  // namespace fastcam
