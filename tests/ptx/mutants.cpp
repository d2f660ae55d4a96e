#include "mutants.h"

#include <algorithm>
#include <cstring>
#include <fstream>

namespace ptx {

namespace {

bool starts(const Instruction& instruction, const char* name) {
  return instruction.opcode->name.starts_with(name);
}

bool is_barrier(const Instruction& instruction) {
  return starts(instruction, "bar.sync") || starts(instruction, "barrier.sync");
}

bool touches_shared(const Instruction& instruction) {
  const std::string& name = instruction.opcode->name;
  const bool memory = name.starts_with("ld.") || name.starts_with("st.");
  const bool elsewhere = name.find(".global.") == 2 || name.find(".param.") == 2;
  return (memory && !elsewhere) || name.starts_with("cp.async");
}

// Nothing in place of an instruction
const Opcode& no_operation() {
  static const Opcode nothing{
      "nothing", [](Warp&, const Instruction&, uint32_t) {}, "", Opcode::kPlain};
  return nothing;
}

class Maker {
 public:
  explicit Maker(const Kernel& kernel)
      : kernel_(kernel),
        successors_(kernel.code.size()),
        predecessors_(kernel.code.size()),
        entered_(kernel.code.size()) {
    for (int i = 0; i < static_cast<int>(kernel.code.size()); ++i) {
      const Instruction& instruction = kernel.code[i];
      const Opcode::Kind kind = instruction.opcode->kind;
      if (kind == Opcode::kBranch)
        connect(i, instruction.target), entered_[instruction.target] = true;
      const bool leaves = kind == Opcode::kBranch || kind == Opcode::kReturn;
      if (!leaves || instruction.guarded) connect(i, i + 1);
    }
  }

  std::vector<Mutant> make() {
    const int count = static_cast<int>(kernel_.code.size());
    for (int i = 0; i < count; ++i) {
      const Instruction& instruction = kernel_.code[i];
      if (is_barrier(instruction)) {
        if (!orders(i)) continue;
        take_out(i);
        move(i, -1);
        move(i, 1);
      } else if (starts(instruction, "cp.async.wait_group")) {
        take_out(i);
        ++changed(i, "waits for one group less").code[i].number;
      } else if (starts(instruction, "cp.async")) {
        take_out(i);
      } else if (starts(instruction, "shfl.sync.bfly.b32")) {
        Instruction& own = changed(i, "gives each lane its own value").code[i];
        own.operands = {own.operands[0], own.operands[own.written]};
        own.opcode = &opcode_named("mov.b32");
        own.count = 2;
        own.written = 1;
        shorten(i);
      }
    }
    return std::move(found_);
  }

 private:
  // Whether a write to shared memory can come before or behind a barrier, with no other barrier between; and
  // anything at all behind it.
  bool orders(int barrier) const {
    bool writes = false, reads_behind = false;
    for (const auto* next : {&successors_, &predecessors_}) {
      std::vector<bool> seen(kernel_.code.size());
      std::vector<int> open = (*next)[barrier];
      while (!open.empty()) {
        const int at = open.back();
        open.pop_back();
        if (seen[at]) continue;
        seen[at] = true;
        const Instruction& instruction = kernel_.code[at];
        writes |= touches_shared(instruction) && !starts(instruction, "ld.");
        reads_behind |= next == &successors_ && touches_shared(instruction);
        if (!is_barrier(instruction))
          open.insert(open.end(), (*next)[at].begin(), (*next)[at].end());
      }
    }
    return writes && reads_behind;
  }

  // A mutant that is still the kernel itself
  Kernel& changed(int i, const std::string& how) {
    const int line = kernel_.code[i].line;
    found_.push_back({std::to_string(line) + ": " + kernel_.line(line) + " " + how, i, kernel_});
    return found_.back().kernel;
  }

  void take_out(int i) {
    Instruction& instruction = changed(i, "is taken out").code[i];
    instruction.opcode = &no_operation();
    instruction.count = instruction.written = 0;
  }

  // Over the nearest access to shared memory, if nothing jumps there or away between them
  void move(int i, int by) {
    int other = i + by;
    const auto passes = [&](int at) {
      const Opcode::Kind kind = kernel_.code[at].opcode->kind;
      return !entered_[by < 0 ? at + 1 : at] && kind != Opcode::kBranch &&
             kind != Opcode::kReturn && !is_barrier(kernel_.code[at]);
    };
    const int end = by < 0 ? -1 : static_cast<int>(kernel_.code.size());
    while (other != end && passes(other) && !touches_shared(kernel_.code[other])) other += by;
    if (other == end || !passes(other)) return;
    std::vector<Instruction>& code =
        changed(i, by < 0 ? "comes before " + text(other) : "comes behind " + text(other)).code;
    if (by < 0) {
      std::rotate(code.begin() + other, code.begin() + i, code.begin() + i + 1);
    } else {
      std::rotate(code.begin() + i, code.begin() + i + 1, code.begin() + other + 1);
    }
  }

  // A shuffle over a constant distance goes half as far.
  void shorten(int i) {
    const Register distance = kernel_.code[i].operands[kernel_.code[i].written + 1].base;
    for (const Constant& constant : kernel_.constants) {
      if (constant.source != Constant::kValue || constant.target.number != distance.number)
        continue;
      Kernel& kernel = changed(i, "goes half as far");
      Constant half = constant;
      half.value /= 2;
      half.target.number = kernel.registers++;
      half.target.row = (kernel.register_bytes + kWarp - 1) / kWarp * kWarp;
      kernel.register_bytes = half.target.row + half.target.bytes();
      kernel.constants.push_back(half);
      kernel.code[i].operands[kernel.code[i].written + 1].base = half.target;
    }
  }

  const std::string& text(int i) const { return kernel_.line(kernel_.code[i].line); }

  void connect(int from, int to) {
    successors_[from].push_back(to);
    predecessors_[to].push_back(from);
  }

  const Kernel& kernel_;
  std::vector<std::vector<int>> successors_, predecessors_;
  std::vector<bool> entered_;  // jumped to
  std::vector<Mutant> found_;
};

using Bytes = std::vector<std::pair<uint64_t, uint8_t>>;  // sorted by address

Bytes values_at(const std::vector<Store>& stores) {
  std::vector<uint64_t> addresses;
  for (const Store& store : stores)
    for (uint32_t i = 0; i < store.bytes; ++i) addresses.push_back(store.address + i);
  std::sort(addresses.begin(), addresses.end());
  addresses.erase(std::unique(addresses.begin(), addresses.end()), addresses.end());
  Bytes bytes;
  for (uint64_t address : addresses)
    bytes.push_back({address, *reinterpret_cast<uint8_t*>(address)});
  return bytes;
}

void undo(const std::vector<Store>& stores) {
  for (auto store = stores.rbegin(); store != stores.rend(); ++store)
    std::memcpy(reinterpret_cast<void*>(store->address), store->before.data(), store->bytes);
}

// What a mutant did wrong, if anything
std::string verdict(
    Machine& machine, const Launch& launch, uint32_t blocks, const Bytes& expected) {
  std::vector<Store> stores;
  machine.stores = &stores;
  std::string wrong;
  try {
    machine.run(launch, 0, blocks);
    if (values_at(stores) != expected) wrong = "other values";
  } catch (const Fault& fault) {
    wrong = fault.what();
    wrong = wrong.substr(0, wrong.find('\n'));
  }
  undo(stores);
  machine.stores = nullptr;
  return wrong;
}

}  // namespace

std::vector<Mutant> mutants_of(const Kernel& kernel) {
  return Maker(kernel).make();
}

void MutantRun::run(Machine& machine, const Launch& launch, uint32_t blocks) {
  const Kernel& kernel = *launch.kernel;
  std::vector<Store> stores;
  machine.stores = &stores;
  const Counts counts = machine.run(launch, 0, blocks);
  machine.stores = nullptr;
  const Bytes expected = values_at(stores);
  undo(stores);

  if (!alive_.count(kernel.name)) {
    alive_[kernel.name] = mutants_of(kernel);
    for (const Mutant& mutant : alive_[kernel.name])
      write("mutant\t" + kernel.name + "\t" + mutant.description);
  }
  std::erase_if(alive_[kernel.name], [&](Mutant& mutant) {
    if (counts.issued[mutant.instruction] == 0) return false;
    if (!mutant.ran) write("ran\t" + kernel.name + "\t" + mutant.description);
    mutant.ran = true;
    Launch broken = launch;
    broken.kernel = &mutant.kernel;
    const std::string wrong = verdict(machine, broken, blocks, expected);
    if (!wrong.empty()) write("died\t" + kernel.name + "\t" + mutant.description + "\t" + wrong);
    return !wrong.empty();
  });
  for (const auto& [address, value] : expected) *reinterpret_cast<uint8_t*>(address) = value;
}

void MutantRun::write(const std::string& line) const {
  std::ofstream(file_, std::ios::app) << line << "\n";
}

}  // namespace ptx
