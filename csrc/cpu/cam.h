// Maps of a method, of one element type: each is instantiated in a file of its own, for they take long to
// compile.
#pragma once

#include "cpu/channels.h"
#include "methods_by_name.h"
#include "operands/features.h"
#include "operands/tensors.h"

namespace fastcam::cpu {

// pixel(A, g), what the maps of an elementwise method sum
template <class F, class Method>
struct Pixel {
  static constexpr bool kUsesWeight = false;
  Method method;

  FASTCAM_HOST_DEVICE F operator()(F a, F g, F) const { return method.pixel(a, g); }
};

template <class T, class F, class Method>
void run_rows(const CamOperands& o, const Method& method, bool relu, F* maps) {
  const Features<T> a = o.activations.features<T>(), g = o.gradients.features<T>();
  const auto [images, classes, channels, positions] = o.extents;
  for_images(
      images, channels * positions * classes,
      [&, classes = classes, channels = channels, positions = positions](int64_t image) {
        F* result = maps + image * classes * positions;
        if constexpr (has_channel_weights<Method>) {
          std::vector<F> totals(channels), weights(classes * channels);
          if constexpr (Method::kUsesActivations)
            row_totals(a, image, channels, positions, method, totals.data());
          for (int64_t k = 0; k < classes; ++k)
            row_weights(
                a, g, image, k, channels, positions, method, totals.data(), &weights[k * channels]);
          row_maps(a, a, image, o.extents, weights.data(), channels, Weighted<F>{}, relu, result);
        } else {
          const F* weights = nullptr;
          row_maps(a, g, image, o.extents, weights, 0, Pixel<F, Method>{method}, relu, result);
        }
      });
}

template <class T, class F, class Method>
void run_planes(const CamOperands& o, const Method& method, bool relu, F* maps) {
  const Features<T> a = o.activations.features<T>(), g = o.gradients.features<T>();
  const int64_t positions = o.extents.positions;
  sum_tiles(
      o.extents, tile_channels<T>(positions), relu, maps,
      [&](const Tile& tile, int64_t first, int64_t last, F* rows) {
        if constexpr (has_channel_weights<Method>) {
          F totals[kMaxTile], weights[kMaxTile];
          if constexpr (Method::kUsesActivations) plane_totals(a, tile, positions, method, totals);
          for (int64_t k = first; k < last; ++k) {
            plane_weights(a, g, tile, k, positions, method, totals, weights);
            add_planes(a, a, tile, 0, positions, weights, Weighted<F>{}, rows + k * positions);
          }
        } else {
          const F* weights = nullptr;
          for (int64_t k = first; k < last; ++k)
            add_planes(
                a, g, tile, k, positions, weights, Pixel<F, Method>{method}, rows + k * positions);
        }
      });
}

// The maps of a method by its name, into `maps`
template <class T>
void cam_of(
    const CamOperands& o, const std::string& method, bool relu, double eps, const Tensor& maps) {
  using F = arithmetic_t<T>;
  with_method<F>(method, eps, [&](const auto& functor) {
    if (maps.numel() == 0) return;
    if (in_rows(o.activations.features<T>())) {
      run_rows<T>(o, functor, relu, mutable_data<F>(maps));
    } else {
      run_planes<T>(o, functor, relu, mutable_data<F>(maps));
    }
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
