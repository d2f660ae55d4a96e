// From a method's name to its functor.
#pragma once

#include <limits>
#include <string>

#include "kernels/methods.h"
#include "operands/checks.h"

namespace fastcam {

// Calls f with the functor that `name` stands for.
template <class F, class Function>
void with_method(const std::string& name, double eps, Function&& f) {
  if (name == "gradcam") return f(GradCAM<F>{});
  if (name == "gradcam++") return f(GradCAMPlusPlus<F>{F(eps)});
  if (name == "gradcam++-signed")
    return f(GradCAMPlusPlus<F>{F(eps), -std::numeric_limits<F>::infinity()});
  if (name == "xgradcam") return f(XGradCAM<F>{F(eps)});
  if (name == "hirescam") return f(HiResCAM<F>{});
  if (name == "layercam") return f(LayerCAM<F>{});
  if (name == "gradcam-elementwise") return f(GradCAMElementWise<F>{});
  check(
      false, "method: got '", name,
      "', expected one of gradcam, gradcam++, gradcam++-signed, xgradcam, hirescam, layercam, "
      "gradcam-elementwise");
}

}  // namespace fastcam
