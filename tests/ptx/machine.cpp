#include "machine.h"

#include <algorithm>
#include <bit>
#include <cstring>

// AddressSanitizer's, if the program is linked with it
extern "C" __attribute__((weak)) void* __asan_region_is_poisoned(void* begin, size_t size);

namespace ptx {

namespace {

std::string triple(const Extent& e) {
  return "(" + std::to_string(e[0]) + ", " + std::to_string(e[1]) + ", " + std::to_string(e[2]) +
         ")";
}

Extent unfolded(uint32_t number, const Extent& extent) {
  return {number % extent[0], number / extent[0] % extent[1], number / extent[0] / extent[1]};
}

uint32_t volume(const Extent& extent) {
  return extent[0] * extent[1] * extent[2];
}

int first_lane(uint32_t lanes) {
  return std::countr_zero(lanes);
}

}  // namespace

// ---- the machine ----

uint32_t Machine::random() {
  state_ ^= state_ << 13;
  state_ ^= state_ >> 7;
  state_ ^= state_ << 17;
  return static_cast<uint32_t>(state_ >> 32);
}

std::string Machine::position() const {
  return running_ ? running_->position() : "no kernel";
}

Counts Machine::run(const Launch& launch, uint32_t first, uint32_t last) {
  const Kernel& kernel = *launch.kernel;
  const uint32_t threads = volume(launch.block);
  if (threads == 0 || threads > kernel.max_threads)
    throw Fault(kernel.name + ": a block of " + std::to_string(threads) + " threads");
  if (threads % kWarp != 0) throw Fault(kernel.name + ": a block of broken warps");
  if (launch.parameters.size() != kernel.parameter_bytes)
    throw Fault(kernel.name + ": its parameters take other bytes");
  Counts counts;
  counts.issued.resize(kernel.code.size());
  Block block(*this, launch, counts);
  running_ = &block;
  for (uint32_t number = first; number < last; ++number) block.run(number);
  running_ = nullptr;
  return counts;
}

// ---- a block ----

Block::Block(Machine& machine, const Launch& launch, Counts& counts)
    : machine(machine), launch(launch), counts(counts) {
  const uint32_t count = volume(launch.block) / kWarp;
  warps_.reserve(count);
  for (uint32_t number = 0; number < count; ++number) warps_.emplace_back(*this, number);
}

std::string Block::position() const {
  return running_ ? running_->position(0) : "no warp";
}

void Block::run(uint32_t number) {
  constexpr int kLongestTurn = 64;
  constexpr int64_t kMostTurns = 1'000'000;
  index = unfolded(number, launch.grid);
  shared.start(*launch.kernel, launch.shared_bytes);
  for (Warp& warp : warps_) warp.start();
  std::vector<Warp*> ready;
  for (int64_t turn = 0; turn < kMostTurns; ++turn) {
    ready.clear();
    const Warp* waiting = nullptr;
    bool ended = false;
    for (Warp& warp : warps_) {
      if (warp.state() == Warp::kReady) ready.push_back(&warp);
      if (warp.state() == Warp::kAtBarrier) waiting = &warp;
      ended |= warp.state() == Warp::kEnded;
    }
    if (waiting && ended) waiting->fail(0, "a barrier that threads which have ended never reach");
    if (!ready.empty()) {
      Warp& warp = *ready[machine.random() % ready.size()];
      running_ = &warp;
      warp.run(1 + machine.random() % kLongestTurn);
    } else if (waiting) {
      shared.barrier();
      const bool all = std::ranges::all_of(warps_, [](const Warp& warp) { return warp.vote(); });
      for (Warp& warp : warps_) warp.leave_barrier(all);
    } else {
      return;
    }
  }
  warps_.front().fail(0, "the block does not come to an end");
}

// ---- a warp: what runs ----

Warp::Warp(Block& block, uint32_t number)
    : block_(block),
      kernel_(*block.launch.kernel),
      number_(number),
      memory_(kernel_.register_bytes / 8 + 1),
      registers_(reinterpret_cast<uint8_t*>(memory_.data())),
      known_(kernel_.registers) {}

void Warp::start() {
  std::fill(known_.begin(), known_.end(), 0);
  for (const Constant& constant : kernel_.constants) {
    const Operand target{constant.target};
    known(target) = kAllLanes;
    if (constant.target.width == 0) {
      predicate(target) = static_cast<uint32_t>(constant.value);
      continue;
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      const Extent thread = unfolded(number_ * kWarp + lane, block_.launch.block);
      const Extent* extents[] = {
          nullptr, &thread, &block_.launch.block, &block_.index, &block_.launch.grid};
      const uint64_t value = constant.source == Constant::kValue ? constant.value
                             : constant.source == Constant::kLane
                                 ? lane
                                 : (*extents[constant.source])[constant.dimension];
      std::memcpy(
          registers_ + constant.target.row + lane * constant.target.width, &value,
          constant.target.width);
    }
  }
  state_ = kReady;
  stack_.assign(1, {0, kAllLanes, kNowhere});
  sync_ = 0;
  open_ = {};
  groups_.clear();
}

void Warp::run(int turns) {
  for (; turns > 0 && state_ == kReady; --turns) {
    Frame& frame = stack_.back();
    if (frame.at == frame.reconverge) {
      stack_.pop_back();
      continue;
    }
    at_ = frame.at++;
    const Instruction& instruction = kernel_.code[at_];
    ++block_.counts.issued[at_];
    uint32_t lanes = frame.lanes;
    if (instruction.guarded) {
      const uint32_t known = known_[instruction.guard.number];
      if (lanes & ~known) fail(first_lane(lanes & ~known), "an undefined predicate decides");
      const uint32_t guard = predicate({instruction.guard});
      lanes &= instruction.negated ? ~guard : guard;
    }
    if (instruction.opcode->kind == Opcode::kBranch) {
      branch(instruction, lanes);
    } else if (lanes) {
      if (instruction.opcode->kind == Opcode::kReturn) {
        end(lanes);
      } else {
        check_known(instruction, lanes);
        instruction.opcode->action(*this, instruction, lanes);
      }
    }
  }
}

void Warp::branch(const Instruction& instruction, uint32_t taken) {
  Frame& frame = stack_.back();
  const uint32_t others = frame.lanes & ~taken;
  if (!taken) return;
  if (!others) {
    frame.at = instruction.target;
    return;
  }
  if (instruction.opcode->name == "bra.uni") fail(first_lane(taken), "a uniform branch diverges");
  Frame sides[] = {
      {frame.at, others, instruction.reconverge},
      {instruction.target, taken, instruction.reconverge}};
  if (block_.machine.random() % 2) std::swap(sides[0], sides[1]);
  if (frame.reconverge ==
      instruction.reconverge) {  // nothing would be left to do in the frame itself
    stack_.pop_back();
  } else {
    frame.at = instruction.reconverge;
  }
  stack_.push_back(sides[0]);
  stack_.push_back(sides[1]);
}

void Warp::end(uint32_t lanes) {
  for (Frame& frame : stack_) frame.lanes &= ~lanes;
  std::erase_if(stack_, [](const Frame& frame) { return frame.lanes == 0; });
  for (const Group& group : groups_)
    for (const Copy& copy : group.copies)
      if (lanes >> copy.lane & 1) fail(copy.lane, "the thread ends before its copies have landed");
  for (const Copy& copy : open_.copies)
    if (lanes >> copy.lane & 1) fail(copy.lane, "the thread ends before its copies have landed");
  if (stack_.empty()) state_ = kEnded;
}

// Whether results are known to be defined follows from the operands; what others see has to be.
void Warp::check_known(const Instruction& instruction, uint32_t lanes) {
  const Opcode::Kind kind = instruction.opcode->kind;
  uint32_t all = kAllLanes;
  for (int i = instruction.written; i < instruction.count; ++i)
    all &= known(instruction.operands[i]);
  if (kind == Opcode::kSelect) {
    const Operand* o = instruction.operands.data();
    const uint32_t choice = predicate(o[3]);
    all = known(o[3]) & ((choice & known(o[1])) | (~choice & known(o[2])));
  }
  if ((kind == Opcode::kEffect || kind == Opcode::kLoad) && (lanes & ~all))
    fail(first_lane(lanes & ~all), "an undefined register is used");
  for (int i = 0; i < instruction.written; ++i) set_known(instruction.operands[i], lanes, all);
}

std::string Warp::position(int lane) const {
  const Instruction& instruction = kernel_.code[at_];
  const Extent thread = unfolded(number_ * kWarp + lane, block_.launch.block);
  return kernel_.file + ":" + std::to_string(instruction.line) + ": " +
         kernel_.line(instruction.line) + "\n  in " + kernel_.name + ", block " +
         triple(block_.index) + ", thread " + triple(thread);
}

void Warp::fail(int lane, const std::string& what) const {
  throw Fault(what + "\n  at " + position(lane));
}

// ---- a warp: memory ----

const uint8_t* Warp::parameter(uint64_t offset, uint32_t bytes, int lane) const {
  const std::vector<uint8_t>& all = block_.launch.parameters;
  if (offset + bytes > all.size()) fail(lane, "an access outside the parameters");
  return all.data() + offset;
}

const uint8_t* Warp::read_global(uint64_t address, uint32_t bytes, int lane) const {
  constexpr uint64_t kNull = 65536, kEnd = uint64_t{1} << 47;
  if (address % bytes != 0)
    fail(lane, "an access of " + std::to_string(bytes) + " bytes is misaligned");
  auto* pointer = reinterpret_cast<uint8_t*>(address);
  if (address < kNull || address >= kEnd ||
      (__asan_region_is_poisoned && __asan_region_is_poisoned(pointer, bytes)))
    fail(lane, "an access outside device memory");
  return pointer;
}

uint8_t* Warp::write_global(uint64_t address, uint32_t bytes, int lane) {
  auto* pointer = const_cast<uint8_t*>(read_global(address, bytes, lane));
  if (block_.machine.stores) {
    Store store{address, bytes, {}};
    std::memcpy(store.before.data(), pointer, bytes);
    block_.machine.stores->push_back(store);
  }
  return pointer;
}

const uint8_t* Warp::read_shared(uint64_t address, uint32_t bytes, int lane, bool& defined) {
  try {
    return block_.shared.read(address, bytes, who(lane), defined);
  } catch (const Fault& fault) {
    fail(lane, fault.what());
  }
}

uint8_t* Warp::write_shared(uint64_t address, uint32_t bytes, int lane) {
  try {
    return block_.shared.write(address, bytes, who(lane));
  } catch (const Fault& fault) {
    fail(lane, fault.what());
  }
}

// As many lanes as take 128 bytes go together, in as many turns as words of one bank are asked for.
void Warp::count_wavefronts(
    const std::array<uint64_t, kWarp>& addresses, uint32_t lanes, uint32_t bytes) {
  constexpr int kBanks = 32, kWord = 4;
  const int together = bytes > kWord ? kWarp * kWord / static_cast<int>(bytes) : kWarp;
  const int words = bytes > kWord ? static_cast<int>(bytes) / kWord : 1;
  for (int first = 0; first < kWarp; first += together) {
    uint64_t seen[kBanks][kWarp];
    int turns[kBanks] = {}, most = 0;
    for (int lane = first; lane < first + together; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      for (int i = 0; i < words; ++i) {
        const uint64_t word = addresses[lane] / kWord + i;
        const int bank = word % kBanks;
        if (std::find(seen[bank], seen[bank] + turns[bank], word) != seen[bank] + turns[bank])
          continue;
        seen[bank][turns[bank]++] = word;
        most = std::max(most, turns[bank]);
      }
    }
    block_.counts.wavefronts += most;
  }
}

// ---- a warp: meetings ----

void Warp::require(uint32_t mask, const char* what) const {
  if (mask & ~running())
    fail(first_lane(mask & ~running()), std::string(what) + " with inactive lanes");
  if (running() & ~mask)
    fail(first_lane(running() & ~mask), std::string(what) + " by a lane that its mask leaves out");
}

void Warp::arrive(const char* what) {
  require(kAllLanes, what);
  state_ = kAtBarrier;
}

void Warp::arrive_and_ask(const Operand& answer, bool vote) {
  arrive("a barrier");
  answer_ = &answer;
  vote_ = vote;
}

void Warp::leave_barrier(bool all_say_yes) {
  state_ = kReady;
  if (answer_) predicate(*answer_) = all_say_yes ? kAllLanes : 0;
  answer_ = nullptr;
  vote_ = true;
}

// ---- a warp: asynchronous copies ----

// A copy lands when its group is waited for; what it reads is as it was when it was issued, or as it is then,
// at random for each group.
void Warp::copy_async(uint64_t to, uint64_t from, uint32_t bytes, uint32_t read, int lane) {
  if (open_.copies.empty()) open_.early = block_.machine.random() % 2;
  Copy copy{lane, to, from, bytes, read, open_.early, {}};
  const uint8_t* source = read ? read_global(from, bytes, lane) : nullptr;
  if (copy.early && read) std::memcpy(copy.data.data(), source, read);
  try {
    block_.shared.expect(to, bytes, who(lane));
  } catch (const Fault& fault) {
    fail(lane, fault.what());
  }
  open_.copies.push_back(copy);
}

void Warp::commit_copies(uint32_t lanes) {
  Group group{lanes, open_.early, {}};
  std::vector<Copy> left;
  for (Copy& copy : open_.copies) (lanes >> copy.lane & 1 ? group.copies : left).push_back(copy);
  open_.copies = std::move(left);
  groups_.push_back(std::move(group));
}

void Warp::wait_for_copies(uint32_t lanes, int pending) {
  std::array<int, kWarp> newer{};
  for (auto group = groups_.rbegin(); group != groups_.rend(); ++group) {
    std::vector<Copy> left;
    for (Copy& copy : group->copies) {
      if ((lanes >> copy.lane & 1) && newer[copy.lane] >= pending) {
        land(copy);
      } else {
        left.push_back(copy);
      }
    }
    for (int lane = 0; lane < kWarp; ++lane) newer[lane] += group->lanes >> lane & 1;
    group->copies = std::move(left);
  }
  while (!groups_.empty() && groups_.front().copies.empty()) groups_.pop_front();
}

void Warp::land(const Copy& copy) {
  std::array<uint8_t, 16> data = copy.data;
  if (!copy.early && copy.read)
    std::memcpy(data.data(), read_global(copy.from, copy.bytes, copy.lane), copy.read);
  block_.shared.land(copy.to, copy.bytes, who(copy.lane), data.data());
}

}  // namespace ptx
