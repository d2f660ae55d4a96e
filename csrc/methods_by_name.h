// From a method's name to its functor.
#pragma once

#include <string>

#include "kernels/methods.h"
#include "operands/checks.h"

namespace fastcam {

// Calls f with the functor that `name` stands for.
template <class F, class Function>
void with_method(const std::string& name, double eps, const Function& f) {
  bool found = false;
  std::string names;
  for_methods(F(eps), [&](const char* known, const auto& method) {
    names += (names.empty() ? "" : ", ") + std::string(known);
    if (name != known) return;
    found = true;
    f(method);
  });
  check(found, "method: got '", name, "', expected one of ", names);
}

}  // namespace fastcam
