// Guided gradients: guided ReLU, and their product with maps.
#pragma once

#include "kernels/layout.h"
#include "operands/checks.h"
#include "operands/maps.h"
#include "operands/tensors.h"

namespace fastcam {

// The tensor in the memory order of `like`, copied where it lies otherwise.
inline Tensor laid_out_as(const Tensor& tensor, const Tensor& like) {
  bool same = true;
  for (int64_t d = 0; d < tensor.dim(); ++d)
    same = same && (tensor.size(d) == 1 || tensor.stride(d) == like.stride(d));
  if (same) return tensor;
  Tensor copy = torch::stable::empty_like(like);
  torch::stable::copy_(copy, tensor);
  return copy;
}

inline void check_guided_relu(const Tensor& grad_output, const Tensor& input) {
  check_floating(input, "input");
  check_together(grad_output, "grad_output", input, "input");
  check_same_type(grad_output, "grad_output", input, "input");
  bool fits = grad_output.dim() == input.dim();
  for (int64_t d = 0; fits && d < input.dim(); ++d) fits = grad_output.size(d) == input.size(d);
  check(
      fits, "grad_output: got shape ", shape_string(grad_output.sizes()),
      ", expected that of the input, ", shape_string(input.sizes()));
}

inline VolumeStrides volume_strides(const Tensor& tensor, int64_t spatial_dims) {
  const int64_t channel = tensor.dim() - spatial_dims - 1;
  const int64_t last = tensor.dim() - 1;
  return {
      tensor.stride(0),
      channel == 2 ? tensor.stride(1) : 0,
      tensor.stride(channel),
      spatial_dims == 3 ? tensor.stride(last - 2) : 0,
      spatial_dims >= 2 ? tensor.stride(last - 1) : 0,
      tensor.stride(last)};
}

// Maps (N, *S) or (N, K, *S) and guided gradients (N, C, *T) or (N, K, C, *T) of any layout; the product
// is laid out as they are.
struct GuidedProductOperands : MapOperands {
  Tensor product;
  VolumeStrides guided_strides, product_strides;
  int64_t classes, channels;
  Size enlarged;

  GuidedProductOperands(const Tensor& maps, const Tensor& guided, int64_t spatial_dims)
      : MapOperands(
            torch::stable::to(checked(maps, guided, spatial_dims), arithmetic_type(guided)),
            spatial_dims),
        product(torch::stable::empty_like(guided)),
        guided_strides(volume_strides(guided, spatial_dims)),
        product_strides(volume_strides(product, spatial_dims)),
        classes(leading.size() == 2 ? leading[1] : 1),
        channels(guided.size(leading.size())),
        enlarged(spatial_size(guided.sizes(), spatial_dims)) {
    check_extents(size, maps.sizes(), "maps");
  }

 private:
  static const Tensor& checked(const Tensor& maps, const Tensor& guided, int64_t spatial_dims) {
    check_floating(guided, "guided");
    check_together(maps, "maps", guided, "guided");
    const int64_t leading = maps.dim() - spatial_dims;
    bool fits = (leading == 1 || leading == 2) && guided.dim() == maps.dim() + 1;
    for (int64_t d = 0; fits && d < leading; ++d) fits = guided.size(d) == maps.size(d);
    check(
        fits, "guided: got shape ", shape_string(guided.sizes()), " for maps of shape ",
        shape_string(maps.sizes()),
        ", expected (N, C, *T) for maps (N, *S), or (N, K, C, *T) for maps (N, K, *S)");
    return maps;
  }
};

}  // namespace fastcam
