#include "cpu/cam.h"

namespace fastcam::cpu {

Tensor cam(
    const Tensor& activations, const Tensor& gradients, std::string method, bool relu, double eps) {
  const CamOperands o(activations, gradients);
  Tensor maps = empty(map_shape(activations, o.classes), arithmetic_type(activations), activations);
  dispatch(activations.scalar_type(), [&](auto element) {
    cam_of<decltype(element)>(o, method, relu, eps, maps);
  });
  return maps;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CPU, m) {
  m.impl("cam", TORCH_BOX(&cam));
}

}  // namespace fastcam::cpu
