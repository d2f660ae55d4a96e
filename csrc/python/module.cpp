// The Python module _C: what is not a tensor operator.
#include <pybind11/pybind11.h>

#include "kernels/plan.h"

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

// What one launch of kernels/cam.cuh would be for float32, float16 or bfloat16.
py::dict launch_plan(
    int64_t images, int64_t classes, int64_t channels, int64_t positions, int64_t element_bytes,
    bool channels_last, bool gradients, bool whole_channels, int64_t multiprocessors,
    int64_t block_memory, int64_t multiprocessor_memory) {
  const fastcam::Extents extents{images, classes, channels, positions};
  const fastcam::CamPlan plan = fastcam::plan_cam(
      {element_bytes, 4, channels_last, gradients, whole_channels}, extents,
      {multiprocessors, block_memory, multiprocessor_memory});
  py::dict result;
  result["tile"] = plan.tile;
  if (plan.tile == 0) return result;
  result["stages"] = plan.stages;
  result["window"] = plan.window;
  result["classes"] = plan.classes;
  result["slices"] = plan.slices;
  result["shared_bytes"] = plan.memory.bytes;
  result["blocks"] = plan.blocks(extents);
  return result;
}

PYBIND11_MODULE(_C, m) {
  m.def("build_info", &build_info, "How the binaries were built: compiler, torch, CUDA.");
  m.def(
      "launch_plan", &launch_plan, py::kw_only(), py::arg("images"), py::arg("classes") = 1,
      py::arg("channels"), py::arg("positions"), py::arg("element_bytes") = 4,
      py::arg("channels_last") = false, py::arg("gradients") = true,
      py::arg("whole_channels") = true, py::arg("multiprocessors"), py::arg("block_memory"),
      py::arg("multiprocessor_memory"),
      "How the fused kernel runs on a GPU with these multiprocessors and bytes of shared memory: "
      "what "
      "a block takes of a map, and how many blocks there are. gradients: whether they are read; "
      "whole_channels: whether the method sums over a channel. A tile of 0 channels: the "
      "weights are found first, by another kernel.");
}
