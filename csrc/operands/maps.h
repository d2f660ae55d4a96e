// Maps, and the extents that they are enlarged to.
#pragma once

#include <vector>

#include "kernels/layout.h"
#include "operands/checks.h"
#include "operands/tensors.h"

namespace fastcam {

// (depth, height, width) from the last dimensions of a shape
inline Size spatial_size(IntHeaderOnlyArrayRef shape, int64_t spatial_dims) {
  const int64_t* last = shape.data() + shape.size() - 1;
  return {spatial_dims == 3 ? last[-2] : 1, spatial_dims >= 2 ? last[-1] : 1, last[0]};
}

inline void check_extents(const Size& extents, IntHeaderOnlyArrayRef shown, const char* name) {
  check(
      extents.depth > 0 && extents.height > 0 && extents.width > 0, name, ": got ",
      shape_string(shown), ", expected spatial extents of at least 1");
}

// Maps (*L, *S), contiguous, as `count` maps of one size.
struct MapOperands {
  Tensor maps;
  std::vector<int64_t> leading;
  int64_t count;
  Size size;

  MapOperands(const Tensor& source, int64_t spatial_dims)
      : maps(torch::stable::contiguous(checked(source, spatial_dims))),
        count(product(source.sizes(), 0, source.dim() - spatial_dims)),
        size(spatial_size(source.sizes(), spatial_dims)) {
    for (int64_t d = 0; d < source.dim() - spatial_dims; ++d) leading.push_back(source.size(d));
  }

 private:
  static const Tensor& checked(const Tensor& maps, int64_t spatial_dims) {
    check_floating(maps, "maps");
    check(
        spatial_dims >= 1 && spatial_dims <= 3, "spatial_dims: got ", spatial_dims,
        ", expected 1, 2 or 3");
    check(
        maps.dim() >= spatial_dims, "maps: got shape ", shape_string(maps.sizes()),
        ", expected at least the ", spatial_dims, " spatial dimensions");
    return maps;
  }
};

struct UpsampleOperands : MapOperands {
  std::vector<int64_t> shape;
  Size enlarged;

  UpsampleOperands(const Tensor& source, const std::vector<int64_t>& size)
      : MapOperands(source, size.size()), shape(leading) {
    shape.insert(shape.end(), size.begin(), size.end());
    enlarged = spatial_size(shape, size.size());
    check_extents(this->size, source.sizes(), "maps");
    check_extents(enlarged, size, "size");
  }
};

}  // namespace fastcam
