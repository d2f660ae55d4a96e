// Runs kernels a warp's instruction at a time, and finds what PTX leaves undefined.
//
// The warps of a block take turns of random length in random order. A warp that diverges runs one side after
// the other until both meet again at the branch's immediate post-dominator, as a GPU does, so the
// instructions that it issues are counted as they would be there.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "program.h"
#include "shared.h"

namespace ptx {

using Extent = std::array<uint32_t, 3>;

struct Launch {
  const Kernel* kernel;
  Extent grid, block;
  uint32_t shared_bytes;  // dynamic
  std::vector<uint8_t> parameters;
};

// What a launch did
struct Counts {
  std::vector<uint64_t> issued;  // times a warp issued each instruction
  uint64_t wavefronts = 0;       // of shared memory, 128 bytes each
};

// A write to device memory, and what was there
struct Store {
  uint64_t address;
  uint32_t bytes;
  std::array<uint8_t, 16> before;
};

class Machine {
 public:
  explicit Machine(uint64_t seed) : state_(seed * 2 + 1) {}

  // The blocks [first, last) of a grid
  Counts run(const Launch& launch, uint32_t first, uint32_t last);

  uint32_t random();
  std::vector<Store>* stores = nullptr;  // collects them
  std::string position() const;          // what runs now

 private:
  friend class Block;
  uint64_t state_;
  const class Block* running_ = nullptr;
};

class Block {
 public:
  Block(Machine& machine, const Launch& launch, Counts& counts);
  void run(uint32_t number);
  std::string position() const;

  Machine& machine;
  const Launch& launch;
  Counts& counts;
  Extent index{};
  SharedMemory shared;

 private:
  std::vector<Warp> warps_;
  const Warp* running_ = nullptr;
};

class Warp {
 public:
  enum State { kReady, kAtBarrier, kEnded };

  Warp(Block& block, uint32_t number);
  void start();
  void run(int turns);
  State state() const { return state_; }
  bool vote() const { return vote_; }
  void leave_barrier(bool all_say_yes);
  std::string position(int lane) const;
  [[noreturn]] void fail(int lane, const std::string& what) const;

  // ---- for actions ----

  template <class T>
  T* row(const Operand& operand) const {
    return reinterpret_cast<T*>(registers_ + operand.base.row);
  }
  uint32_t& predicate(const Operand& operand) const { return *row<uint32_t>(operand); }
  uint32_t& known(const Operand& operand) { return known_[operand.base.number]; }
  void set_known(const Operand& operand, uint32_t lanes, uint32_t known_lanes) {
    known(operand) = (known(operand) & ~lanes) | (known_lanes & lanes);
  }

  uint64_t address(const Operand& operand, int lane) const {
    const uint64_t base =
        operand.base.width == 8 ? row<uint64_t>(operand)[lane] : row<uint32_t>(operand)[lane];
    return base + operand.displacement;
  }
  const uint8_t* parameter(uint64_t offset, uint32_t bytes, int lane) const;
  const uint8_t* read_global(uint64_t address, uint32_t bytes, int lane) const;
  uint8_t* write_global(uint64_t address, uint32_t bytes, int lane);
  const uint8_t* read_shared(uint64_t address, uint32_t bytes, int lane, bool& defined);
  uint8_t* write_shared(uint64_t address, uint32_t bytes, int lane);
  void count_wavefronts(
      const std::array<uint64_t, kWarp>& addresses, uint32_t lanes, uint32_t bytes);

  // The lanes that run now; a meeting of the warp needs those of `mask`
  uint32_t running() const { return stack_.back().lanes; }
  void require(uint32_t mask, const char* what) const;
  void arrive(const char* what);
  // At a barrier that asks whether all threads say yes: where the answer goes
  void arrive_and_ask(const Operand& answer, bool vote);
  void synchronize() { ++sync_; }

  void copy_async(uint64_t to, uint64_t from, uint32_t bytes, uint32_t read, int lane);
  void commit_copies(uint32_t lanes);
  void wait_for_copies(uint32_t lanes, int pending);

 private:
  struct Frame {
    int at;
    uint32_t lanes;
    int reconverge;
  };
  struct Copy {
    int lane;
    uint64_t to, from;
    uint32_t bytes, read;
    bool early;
    std::array<uint8_t, 16> data;
  };
  struct Group {
    uint32_t lanes = 0;
    bool early = false;
    std::vector<Copy> copies;
  };

  void branch(const Instruction& instruction, uint32_t taken);
  void end(uint32_t lanes);
  void check_known(const Instruction& instruction, uint32_t lanes);
  void land(const Copy& copy);
  Who who(int lane) const { return {static_cast<uint16_t>(number_ * kWarp + lane), sync_}; }

  Block& block_;
  const Kernel& kernel_;
  uint32_t number_;
  std::vector<uint64_t> memory_;
  uint8_t* registers_;
  std::vector<uint32_t> known_;
  State state_ = kEnded;
  bool vote_ = true;
  const Operand* answer_ = nullptr;
  std::vector<Frame> stack_;
  int at_ = 0;  // the instruction that runs
  uint16_t sync_ = 0;
  Group open_;
  std::deque<Group> groups_;
};

}  // namespace ptx
