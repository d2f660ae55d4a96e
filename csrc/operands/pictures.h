// Pictures: under maps, and with pixels to fill in.
#pragma once

#include "kernels/layout.h"
#include "operands/checks.h"
#include "operands/maps.h"
#include "operands/tensors.h"

namespace fastcam {

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
        "colormap: got shape ", shape_string(colors.sizes()), " and dtype ",
        dtype_name(colors.scalar_type()), ", expected (256, 3) and uint8");
    check(alpha >= 0 && alpha <= 1, "alpha: got ", alpha, ", expected a number in [0, 1]");
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
        "known: got shape ", shape_string(known.sizes()), " and dtype ",
        dtype_name(known.scalar_type()), ", expected (N, H, W) and bool for images of shape ",
        shape_string(images.sizes()));
    return images;
  }
};

}  // namespace fastcam
