// What the kernels' tests launch, in place of tests/kernels/emulator.h: the kernels that nvcc made, from the
// PTX files in the folder FASTCAM_PTX.
//
// FASTCAM_PTX_RAN: a file that the names of the launched kernels are appended to. FASTCAM_PTX_SEED: of
// everything that is random. FASTCAM_PTX_MUTANTS: the file of a MutantRun.
#pragma once

#include <cstdint>
#include <vector>

#include "machine.h"

namespace ptx {

struct Argument {
  const void* data;
  size_t bytes;
};

struct Blocks {
  Extent grid, threads;
  uint32_t shared_bytes;
  bool (*asks_for_memory)(int64_t static_bytes, int64_t dynamic_bytes);
};

// The kernel whose name is that of a host function; a fault ends the process with a message.
void launch(const void* function, const Blocks& blocks, const std::vector<Argument>& arguments);

// The mangled name of a host function, which is the entry's
std::string name_of(const void* function);

// From the folder FASTCAM_PTX
const Kernel& kernel_named(const std::string& name);

// Checks what a launch asks for.
Launch prepared(const Kernel& kernel, const Blocks& blocks, const std::vector<Argument>& arguments);

}  // namespace ptx
