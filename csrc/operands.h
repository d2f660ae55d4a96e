// What the CPU and the CUDA side of every operator begin with: checked arguments, extents, strides and
// an allocated result.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/layout.h"
#include "kernels/scalar.h"

namespace fastcam {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_string(IntHeaderOnlyArrayRef shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

// Raises RuntimeError with the message, the rest of the arguments in a row.
template <class... Parts>
void check(bool condition, const Parts&... message) {
  if (condition) return;
  std::ostringstream text;
  (text << ... << message);
  throw std::runtime_error(text.str());
}

inline void check_floating(const Tensor& tensor, const char* name) {
  const ScalarType type = tensor.scalar_type();
  check(
      type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16 ||
          type == ScalarType::Double,
      name, ": got dtype ", toString(type), ", expected float32, float16, bfloat16 or float64");
}

inline void check_together(
    const Tensor& tensor, const char* name, const Tensor& other, const char* other_name) {
  check(
      tensor.device() == other.device(), name, ": is on another device than ", other_name,
      "; move both to one device");
}

inline void check_same_type(
    const Tensor& tensor, const char* name, const Tensor& other, const char* other_name) {
  check(
      tensor.scalar_type() == other.scalar_type(), name, ": got dtype ",
      toString(tensor.scalar_type()), ", expected that of ", other_name, ", ",
      toString(other.scalar_type()));
}

// float32 for the 16 and 32 bit types, float64 for float64
inline ScalarType arithmetic_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls f with a value of the element type, so that `decltype` names it.
template <class Function>
void dispatch(ScalarType type, Function&& f) {
  if (type == ScalarType::Float) return f(float{});
  if (type == ScalarType::Half) return f(float16{});
  if (type == ScalarType::BFloat16) return f(bfloat16{});
  f(double{});
}

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

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

inline Tensor empty(const std::vector<int64_t>& shape, ScalarType type, const Tensor& like) {
  return torch::stable::empty(shape, type, std::nullopt, like.device());
}

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

inline int64_t product(IntHeaderOnlyArrayRef sizes, int64_t begin, int64_t end) {
  int64_t result = 1;
  for (int64_t d = begin; d < end; ++d) result *= sizes[d];
  return result;
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

// Extents to enlarge maps of activations to: as many as there are spatial dimensions
inline void check_size(const Tensor& activations, const std::vector<int64_t>& size) {
  const int64_t spatial_dims = check_activations(activations);
  check(
      static_cast<int64_t>(size.size()) == spatial_dims, "size: got ", shape_string(size),
      ", expected ", spatial_dims, " extents, as many as the activations have positions in");
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
        fits, "guided: got shape ", shape_string(guided.sizes()),
        ", expected (N, C, *T) or (N, K, C, *T) for maps (N, *S) or (N, K, *S), which came as ",
        shape_string(maps.sizes()));
    return maps;
  }
};

// Images (N, H, W, 3) or (N, 3, H, W) of any layout, maps (N, h, w) and a table of 256 colours; the
// pictures are contiguous in the images' shape.
struct OverlayOperands : MapOperands {
  Tensor colormap, pictures;
  VolumeStrides image_strides, picture_strides;
  Size enlarged;
  bool is_uint8;

  OverlayOperands(const Tensor& images, const Tensor& maps, const Tensor& colors, double alpha)
      : MapOperands(torch::stable::to(checked(images, maps, colors, alpha), ScalarType::Float), 2),
        colormap(torch::stable::contiguous(colors)),
        pictures(empty({images.sizes().begin(), images.sizes().end()}, ScalarType::Byte, images)),
        is_uint8(images.scalar_type() == ScalarType::Byte) {
    const bool channels_last = images.size(3) == 3;
    enlarged = channels_last ? Size{1, images.size(1), images.size(2)}
                             : Size{1, images.size(2), images.size(3)};
    image_strides = strides(images, channels_last);
    picture_strides = strides(pictures, channels_last);
    check_extents(size, maps.sizes(), "maps");
  }

 private:
  static VolumeStrides strides(const Tensor& t, bool channels_last) {
    return channels_last ? VolumeStrides{t.stride(0), 0, t.stride(3), 0, t.stride(1), t.stride(2)}
                         : VolumeStrides{t.stride(0), 0, t.stride(1), 0, t.stride(2), t.stride(3)};
  }

  static const Tensor& checked(
      const Tensor& images, const Tensor& maps, const Tensor& colors, double alpha) {
    if (images.scalar_type() != ScalarType::Byte) check_floating(images, "images");
    check_together(maps, "maps", images, "images");
    check_together(colors, "colormap", images, "images");
    check(
        images.dim() == 4 && (images.size(3) == 3 || images.size(1) == 3), "images: got shape ",
        shape_string(images.sizes()), ", expected (N, H, W, 3) or (N, 3, H, W)");
    check(
        maps.dim() == 3 && maps.size(0) == images.size(0), "maps: got shape ",
        shape_string(maps.sizes()), ", expected (N, h, w) with N = ", images.size(0),
        " as in the images");
    check(
        colors.scalar_type() == ScalarType::Byte && colors.dim() == 2 && colors.size(0) == 256 &&
            colors.size(1) == 3,
        "colormap: got shape ", shape_string(colors.sizes()), " of ",
        toString(colors.scalar_type()), ", expected (256, 3) uint8");
    check(alpha >= 0 && alpha <= 1, "alpha: got ", alpha, ", expected a share in [0, 1]");
    return maps;
  }
};

// Images (N, C, H, W) and known (N, H, W), contiguous, and the result
struct ImputeOperands {
  Tensor images, known, result;

  ImputeOperands(const Tensor& pixels, const Tensor& kept)
      : images(torch::stable::contiguous(checked(pixels, kept))),
        known(torch::stable::contiguous(kept)),
        result(
            empty({pixels.sizes().begin(), pixels.sizes().end()}, pixels.scalar_type(), pixels)) {}

 private:
  static const Tensor& checked(const Tensor& images, const Tensor& known) {
    check_floating(images, "images");
    check_together(known, "known", images, "images");
    check(
        images.dim() == 4, "images: got shape ", shape_string(images.sizes()),
        ", expected (N, C, H, W)");
    check(
        known.scalar_type() == ScalarType::Bool && known.dim() == 3 &&
            known.size(0) == images.size(0) && known.size(1) == images.size(2) &&
            known.size(2) == images.size(3),
        "known: got shape ", shape_string(known.sizes()), " of ", toString(known.scalar_type()),
        ", expected (N, H, W) as in the images, ", shape_string(images.sizes()), ", of Bool");
    return images;
  }
};

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

}  // namespace fastcam
