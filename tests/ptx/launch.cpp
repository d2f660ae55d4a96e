#include "launch.h"

#include "mutants.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <sstream>

// AddressSanitizer's, if the program is linked with it
extern "C" __attribute__((weak)) void __asan_set_death_callback(void (*callback)());

namespace ptx {

namespace {

std::string setting(const char* name, const char* otherwise = "") {
  const char* value = std::getenv(name);
  return value ? value : otherwise;
}

std::vector<Module> read_modules(const std::string& folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.path().extension() == ".ptx") paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::vector<Module> modules;
  for (const auto& path : paths) {
    std::ifstream stream(path);
    std::ostringstream text;
    text << stream.rdbuf();
    modules.emplace_back(path.filename().string(), text.str());
  }
  return modules;
}

void note(const std::string& name) {
  static const std::string path = setting("FASTCAM_PTX_RAN");
  static std::set<std::string> noted;
  if (path.empty() || !noted.insert(name).second) return;
  std::ofstream(path, std::ios::app) << name << "\n";
}

Machine& machine() {
  static Machine the_one(std::stoull(setting("FASTCAM_PTX_SEED", "1")));
  return the_one;
}

// An address that nobody allocated ends the process, which says where.
void say_position() {
  std::fprintf(stderr, "ptx: at %s\n", machine().position().c_str());
}

}  // namespace

std::string name_of(const void* function) {
  Dl_info info;
  if (!dladdr(function, &info) || info.dli_saddr != function)
    throw Fault("a kernel has no name: is the program linked with -rdynamic?");
  return info.dli_sname;
}

const Kernel& kernel_named(const std::string& name) {
  static const std::vector<Module> modules = read_modules(setting("FASTCAM_PTX", "."));
  static std::map<std::string, std::unique_ptr<Kernel>> parsed;
  std::unique_ptr<Kernel>& kernel = parsed[name];
  for (const Module& module : modules)
    if (!kernel && module.has(name)) kernel = std::make_unique<Kernel>(module.kernel(name));
  if (!kernel) throw Fault("no PTX has the kernel " + name);
  return *kernel;
}

Launch prepared(
    const Kernel& kernel, const Blocks& blocks, const std::vector<Argument>& arguments) {
  constexpr uint32_t kUnasked = 48 * 1024, kMost = 227 * 1024;
  const uint32_t shared = kernel.static_bytes + blocks.shared_bytes;
  const bool asked =
      blocks.asks_for_memory && blocks.asks_for_memory(kernel.static_bytes, blocks.shared_bytes);
  if (shared > kMost || (shared > kUnasked && !asked))
    throw Fault(kernel.name + ": too much shared memory");
  Launch launch{&kernel, blocks.grid, blocks.threads, blocks.shared_bytes, {}};
  launch.parameters.resize(kernel.parameter_bytes);
  if (arguments.size() != kernel.parameters.size())
    throw Fault(kernel.name + " has another number of parameters");
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i].bytes != kernel.parameters[i].bytes)
      throw Fault(kernel.name + ": parameter " + std::to_string(i) + " has another size");
    std::memcpy(
        launch.parameters.data() + kernel.parameters[i].offset, arguments[i].data,
        arguments[i].bytes);
  }
  return launch;
}

void launch(const void* function, const Blocks& blocks, const std::vector<Argument>& arguments) {
  if (__asan_set_death_callback) __asan_set_death_callback(say_position);
  try {
    const Kernel& kernel = kernel_named(name_of(function));
    const uint32_t count = blocks.grid[0] * blocks.grid[1] * blocks.grid[2];
    const Launch launch = prepared(kernel, blocks, arguments);
    if (static MutantRun mutants(setting("FASTCAM_PTX_MUTANTS")); mutants.wanted()) {
      mutants.run(machine(), launch, count);
    } else {
      machine().run(launch, 0, count);
    }
    note(kernel.name);
  } catch (const Fault& fault) {
    std::fprintf(stderr, "ptx: %s\n", fault.what());
    std::_Exit(1);
  }
}

}  // namespace ptx
