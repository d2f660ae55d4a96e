// From activations and gradients to enlarged maps.
#pragma once

#include <vector>

#include "kernels/layout.h"
#include "operands/checks.h"
#include "operands/features.h"
#include "operands/maps.h"

namespace fastcam {

// Extents to enlarge maps of activations to: one for each spatial dimension
inline void check_size(const Tensor& activations, const std::vector<int64_t>& size) {
  const int64_t spatial_dims = check_activations(activations);
  check(
      static_cast<int64_t>(size.size()) == spatial_dims, "size: got ", shape_string(size),
      ", expected ", spatial_dims, " extents, one for each spatial dimension of the activations");
}

// Activations, gradients and the extents of their enlarged maps
struct SaliencyOperands : CamOperands {
  std::vector<int64_t> shape;
  Size size, enlarged;

  SaliencyOperands(const Tensor& a, const Tensor& g, const std::vector<int64_t>& extents)
      : CamOperands(a, g), shape(map_shape(a, classes)), size(spatial_size(shape, spatial_dims)) {
    check_size(a, extents);
    shape.resize(shape.size() - spatial_dims);
    shape.insert(shape.end(), extents.begin(), extents.end());
    enlarged = spatial_size(shape, spatial_dims);
    check_extents(size, a.sizes(), "activations");
    check_extents(enlarged, extents, "size");
  }
};

}  // namespace fastcam
