// The Python module _C: what is not a tensor operator.
#include <pybind11/pybind11.h>

namespace py = pybind11;

// How the binaries were built: an empty string where there is nothing to say.
py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#else
  info["compiler"] = "";
#endif
  info["torch"] = FASTCAM_TORCH_VERSION;
  info["stable_abi_target"] = FASTCAM_STABLE_ABI_TARGET;
  info["cuda"] = FASTCAM_CUDA_VERSION;
  info["cuda_architectures"] = FASTCAM_CUDA_ARCHITECTURES;
  return info;
}

PYBIND11_MODULE(_C, m) {
  m.def("build_info", &build_info, "How the binaries were built: compiler, torch, CUDA.");
}
