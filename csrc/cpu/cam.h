// Maps of a method, of one element type: each is instantiated in a file of its own, for they take long to
// compile.
#pragma once

#include "cpu/weights_and_maps.h"
#include "methods_by_name.h"
#include "operands/features.h"
#include "operands/tensors.h"

namespace fastcam::cpu {

// The maps of a method by its name, into `maps`
template <class T>
void cam_of(
    const CamOperands& o, const std::string& method, bool relu, double eps, const Tensor& maps) {
  using F = arithmetic_t<T>;
  with_method<F>(method, eps, [&](const auto& functor) {
    if (maps.numel() == 0) return;
    find_maps(
        o.activations.features<T>(), o.gradients.features<T>(), o.extents, functor, relu,
        mutable_data<F>(maps));
  });
}

extern template void cam_of<float>(
    const CamOperands&, const std::string&, bool, double, const Tensor&);
extern template void cam_of<double>(
    const CamOperands&, const std::string&, bool, double, const Tensor&);
extern template void cam_of<float16>(
    const CamOperands&, const std::string&, bool, double, const Tensor&);
extern template void cam_of<bfloat16>(
    const CamOperands&, const std::string&, bool, double, const Tensor&);

}  // namespace fastcam::cpu
