// Breaks compiled kernels, a change at a time, in ways that their source cannot express.
#pragma once

#include <string>
#include <vector>

#include "launch.h"

namespace ptx {

struct Mutant {
  std::string description;
  int instruction;  // that is changed
  Kernel kernel;
  bool ran = false;
};

// Each barrier that orders a write taken out, and moved over the nearest access to shared memory before and
// behind it; waits for copies weakened and taken out, commits and copies taken out; shuffles over another
// distance, and none.
std::vector<Mutant> mutants_of(const Kernel& kernel);

// Runs a launch as it is, and each mutant that no launch before has noticed on the same memory. A mutant
// dies by a fault, or by other values. Into `file`, a line each: the mutants, whose changed instruction ran,
// and which died of what.
class MutantRun {
 public:
  explicit MutantRun(const std::string& file) : file_(file) {}
  bool wanted() const { return !file_.empty(); }
  void run(Machine& machine, const Launch& launch, uint32_t blocks);

 private:
  void write(const std::string& line) const;

  std::string file_;
  std::map<std::string, std::vector<Mutant>> alive_;
};

}  // namespace ptx
