// Runs a CUDA kernel on the CPU: the threads of a block as threads of the process, blocks one after
// another. Included before a kernel header that g++ compiles.
#pragma once

#include <barrier>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __shared__ static  // one block at a time owns it

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace emulator {

constexpr unsigned kWarp = 32;

// What the threads of the running block share.
struct Block {
  explicit Block(unsigned threads) : all(threads), slots(threads) {
    for (unsigned warp = 0; warp < threads / kWarp; ++warp)
      warps.push_back(std::make_unique<std::barrier<>>(kWarp));
  }

  std::barrier<> all;
  std::vector<std::unique_ptr<std::barrier<>>> warps;
  std::vector<uint64_t> slots;  // what each thread offers in a shuffle
};

inline thread_local dim3 thread_index, block_index, grid_extent;
inline thread_local unsigned thread_number;
inline thread_local Block* block;

// kernel<<<blocks, extent>>>(arguments...), the extent a multiple of a warp
template <class... Parameters, class... Arguments>
void launch(
    void (*kernel)(Parameters...), unsigned blocks, dim3 extent, const Arguments&... arguments) {
  const unsigned count = extent.x * extent.y;
  Block shared(count);
  std::vector<std::thread> threads;
  for (unsigned number = 0; number < count; ++number) {
    threads.emplace_back([&, number] {
      block = &shared;
      thread_number = number;
      thread_index = {number % extent.x, number / extent.x, 0};
      grid_extent = {blocks, 1, 1};
      for (unsigned b = 0; b < blocks; ++b) {
        block_index = {b, 0, 0};
        kernel(arguments...);
        shared.all.arrive_and_wait();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace emulator

#define threadIdx emulator::thread_index
#define blockIdx emulator::block_index
#define gridDim emulator::grid_extent

inline void __syncthreads() {
  emulator::block->all.arrive_and_wait();
}

template <class F>
F __shfl_xor_sync(unsigned, F value, int offset) {
  emulator::Block& block = *emulator::block;
  std::barrier<>& warp = *block.warps[emulator::thread_number / emulator::kWarp];
  std::memcpy(&block.slots[emulator::thread_number], &value, sizeof(F));
  warp.arrive_and_wait();
  F other;
  std::memcpy(&other, &block.slots[emulator::thread_number ^ offset], sizeof(F));
  warp.arrive_and_wait();
  return other;
}
