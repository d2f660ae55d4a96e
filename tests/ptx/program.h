// Kernels as the machine runs them, made from PTX text.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

constexpr int kWarp = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;
// Where shared memory lies in the 32 bits of its own address space, and in the generic one
constexpr uint32_t kSharedBase = 1024;
constexpr uint64_t kSharedWindow = uint64_t{1} << 56;

// What PTX does not allow, or what this machine does not know
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A register of all lanes: 32 values of `width` bytes, or of a predicate a mask of the lanes (width 0).
struct Register {
  uint32_t number = 0;
  uint32_t row = 0;  // offset in a warp's registers, in bytes
  uint8_t width = 0;

  uint32_t bytes() const { return width ? width * kWarp : 4; }
};

// [base + displacement] if it is an address
struct Operand {
  Register base;
  int64_t displacement = 0;
};

class Warp;
struct Instruction;
using Action = void (*)(Warp&, const Instruction&, uint32_t lanes);

// Issue slots of a warp, and how many of them a narrower unit takes
struct Cost {
  double slots, integer, special, doubles;
};

struct Opcode {
  std::string name;
  Action action;
  // An operand a letter: 2, 4, 8: a value of so many bytes; r: a register of any width, R: one or more
  // of them; p: a predicate; m: an address; l: a label; n: a number. = before those that are written.
  std::string operands;
  enum Kind { kPlain, kSelect, kLoad, kEffect, kBranch, kReturn } kind = kPlain;
};

// The opcode of this name, or a Fault that names it; with its cost
const Opcode& opcode_named(const std::string& name);
std::vector<std::string> opcode_names();
Cost cost_of(const std::string& opcode);

constexpr int kNowhere = -1;

struct Instruction {
  const Opcode* opcode = nullptr;
  std::array<Operand, 8> operands;
  int count = 0, written = 0;  // operands, and how many of them are written; these come first
  bool guarded = false, negated = false;
  Register guard;
  int64_t number = 0;         // an operand that is a number
  int target = kNowhere;      // of a branch
  int reconverge = kNowhere;  // where the lanes that a branch separates meet again
  int line = 0;
};

// Registers that hold the same value throughout
struct Constant {
  enum Source { kValue, kThread, kBlockExtent, kBlock, kGridExtent, kLane } source;
  int dimension;   // of the sources that have x, y and z
  uint64_t value;  // of kValue
  Register target;
};

struct Array {
  uint32_t offset, bytes;  // offset in a block's shared memory or among the parameters
};

struct Kernel {
  std::string name, file;
  std::vector<std::string> text;  // lines of the entry
  int first_line = 0;
  std::vector<Instruction> code;
  std::vector<Constant> constants;
  std::vector<Array> parameters, shared;  // in the order of the text
  uint32_t parameter_bytes = 0;
  uint32_t static_bytes = 0;   // of shared memory
  uint32_t dynamic_start = 0;  // where dynamic shared memory begins
  uint32_t shared_unit = 4;    // bytes that every access to shared memory is a multiple of
  uint32_t registers = 0, register_bytes = 0;
  uint32_t max_threads = 1024;

  const std::string& line(int number) const { return text[number - first_line]; }
};

// The kernels of a PTX file by their names, parsed when asked for
class Module {
 public:
  Module(const std::string& file, const std::string& text);

  std::vector<std::string> names() const;
  bool has(const std::string& name) const { return entries_.count(name) > 0; }
  Kernel kernel(const std::string& name) const;

 private:
  struct Entry {
    int first_line;
    std::vector<std::string> lines;
  };
  struct SharedArray {
    uint32_t alignment, bytes;
    bool dynamic;
  };
  friend class Parser;

  std::string file_;
  std::map<std::string, SharedArray> shared_;
  std::map<std::string, Entry> entries_;
};

// Sets where the lanes meet again behind each branch: its immediate post-dominator.
void find_reconvergence(std::vector<Instruction>& code);

}  // namespace ptx
