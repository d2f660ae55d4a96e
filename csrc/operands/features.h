// Activations, gradients and weights: what the maps of channels are made from.
#pragma once

#include <optional>
#include <vector>

#include "kernels/layout.h"
#include "operands/checks.h"
#include "operands/tensors.h"

namespace fastcam {

// The stride that walks the last `spatial_dims` dimensions in order, where a single one does.
inline std::optional<int64_t> position_stride(const Tensor& tensor, int64_t spatial_dims) {
  std::optional<int64_t> stride;
  int64_t expected = 0;
  for (int64_t d = tensor.dim() - 1; d >= tensor.dim() - spatial_dims; --d) {
    if (tensor.size(d) == 1) continue;
    if (!stride)
      stride = tensor.stride(d);
    else if (tensor.stride(d) != expected)
      return std::nullopt;
    expected = tensor.stride(d) * tensor.size(d);
  }
  return stride.value_or(0);
}

// A tensor (N, C, *S) or (N, K, C, *S) whose positions are walked by one stride: itself for contiguous,
// channels_last, expanded and most sliced layouts, a contiguous copy for the others.
struct FeatureTensor {
  Tensor tensor;
  Strides strides;

  FeatureTensor(const Tensor& source, int64_t spatial_dims) : tensor(source) {
    std::optional<int64_t> position = position_stride(tensor, spatial_dims);
    if (!position) {
      tensor = torch::stable::contiguous(tensor);
      position = position_stride(tensor, spatial_dims);
    }
    const bool classes = tensor.dim() == spatial_dims + 3;
    strides = {
        tensor.stride(0), classes ? tensor.stride(1) : 0, tensor.stride(classes ? 2 : 1),
        *position};
  }

  template <class T>
  Features<T> features() const {
    return {data<T>(tensor), strides};
  }
};

// (N, *S) or (N, K, *S): the shape of a map, from the shape of activations and the classes
inline std::vector<int64_t> map_shape(const Tensor& activations, std::optional<int64_t> classes) {
  std::vector<int64_t> shape{activations.size(0)};
  if (classes) shape.push_back(*classes);
  for (int64_t d = 2; d < activations.dim(); ++d) shape.push_back(activations.size(d));
  return shape;
}

inline int64_t check_activations(const Tensor& activations) {
  check_floating(activations, "activations");
  const int64_t spatial_dims = activations.dim() - 2;
  check(
      spatial_dims >= 1 && spatial_dims <= 3, "activations: got shape ",
      shape_string(activations.sizes()),
      ", expected (N, C, *S) with one to three spatial dimensions S");
  return spatial_dims;
}

// Activations and gradients that belong together.
struct CamOperands {
  int64_t spatial_dims;
  std::optional<int64_t> classes;
  Extents extents;
  FeatureTensor activations, gradients;

  CamOperands(const Tensor& a, const Tensor& g)
      : spatial_dims(checked(a, g)),
        classes(g.dim() > a.dim() ? std::optional(g.size(1)) : std::nullopt),
        extents{a.size(0), classes.value_or(1), a.size(1), product(a.sizes(), 2, a.dim())},
        activations(a, spatial_dims),
        gradients(g, spatial_dims) {}

  // (N, C) or (N, K, C)
  std::vector<int64_t> weights_shape() const {
    if (!classes) return {extents.images, extents.channels};
    return {extents.images, *classes, extents.channels};
  }

 private:
  static int64_t checked(const Tensor& a, const Tensor& g) {
    const int64_t spatial_dims = check_activations(a);
    check_together(g, "gradients", a, "activations");
    check_same_type(g, "gradients", a, "activations");
    const int64_t extra = g.dim() - a.dim();
    bool fits = (extra == 0 || extra == 1) && g.size(0) == a.size(0);
    for (int64_t d = 1; fits && d < a.dim(); ++d) fits = g.size(d + extra) == a.size(d);
    check(
        fits, "gradients: got shape ", shape_string(g.sizes()),
        ", expected that of the activations, ", shape_string(a.sizes()),
        ", or (N, K, C, *S) for K classes");
    return spatial_dims;
  }
};

// Gradients alone, (N, C, *S) or (N, K, C, *S): the leading dimensions stay.
struct GapOperands {
  int64_t spatial_dims;
  FeatureTensor gradients;
  std::vector<int64_t> shape;
  Extents extents;

  GapOperands(const Tensor& g, std::optional<int64_t> dims)
      : spatial_dims(checked(g, dims)), gradients(g, spatial_dims) {
    const int64_t leading = g.dim() - spatial_dims;
    for (int64_t d = 0; d < leading; ++d) shape.push_back(g.size(d));
    extents = {
        g.size(0), leading == 3 ? g.size(1) : 1, g.size(leading - 1),
        product(g.sizes(), leading, g.dim())};
  }

 private:
  static int64_t checked(const Tensor& g, std::optional<int64_t> dims) {
    check_floating(g, "gradients");
    const int64_t spatial_dims = dims.value_or(g.dim() - 2);
    const int64_t leading = g.dim() - spatial_dims;
    check(
        spatial_dims >= 1 && spatial_dims <= 3 && (leading == 2 || leading == 3),
        "gradients: got shape ", shape_string(g.sizes()), " with ", spatial_dims,
        " spatial dimensions, expected (N, C, *S) or (N, K, C, *S) with one to three of them");
    return spatial_dims;
  }
};

// The tensor itself where its last dimension is contiguous, else a copy.
inline Tensor rows_contiguous(const Tensor& tensor) {
  return tensor.stride(tensor.dim() - 1) == 1 ? tensor : torch::stable::contiguous(tensor);
}

// Activations and the weights of their channels, (N, C) or (N, K, C), which come in the maps' precision.
struct WeightedSumOperands {
  int64_t spatial_dims;
  std::optional<int64_t> classes;
  Extents extents;
  FeatureTensor activations;
  Tensor weights;

  WeightedSumOperands(const Tensor& a, const Tensor& w)
      : spatial_dims(checked(a, w)),
        classes(w.dim() == 3 ? std::optional(w.size(1)) : std::nullopt),
        extents{a.size(0), classes.value_or(1), a.size(1), product(a.sizes(), 2, a.dim())},
        activations(a, spatial_dims),
        weights(rows_contiguous(torch::stable::to(w, arithmetic_type(a)))) {}

  // Elements between the weights of two images and of two classes
  int64_t image_stride() const { return weights.stride(0); }
  int64_t class_stride() const { return classes ? weights.stride(1) : 0; }

 private:
  static int64_t checked(const Tensor& a, const Tensor& w) {
    const int64_t spatial_dims = check_activations(a);
    check_floating(w, "weights");
    check_together(w, "weights", a, "activations");
    check(
        (w.dim() == 2 || w.dim() == 3) && w.size(0) == a.size(0) &&
            w.size(w.dim() - 1) == a.size(1),
        "weights: got shape ", shape_string(w.sizes()),
        ", expected (N, C) or (N, K, C) with N = ", a.size(0), " and C = ", a.size(1),
        " as in the activations");
    return spatial_dims;
  }
};

}  // namespace fastcam
