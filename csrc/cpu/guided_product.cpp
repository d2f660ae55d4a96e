#include "cpu/enlarge.h"
#include "operands/guided.h"
#include "operands/tensors.h"

namespace fastcam::cpu {

// One row of one map's gradients: product[c, x] = heat[x] * guided[c, x]. `spread` is a scratch row of all
// channels.
template <class T, class F>
FASTCAM_MULTIVERSION void multiply_row(
    const F* heat, int64_t channels, int64_t width, const T* guided, const VolumeStrides& gs,
    T* __restrict product, const VolumeStrides& ps, F* __restrict spread) {
  if (gs.channel == 1 && ps.channel == 1 && gs.width == channels && ps.width == channels) {
    for (int64_t x = 0; x < width; ++x) {
      for (int64_t c = 0; c < channels; ++c) spread[x * channels + c] = heat[x];
    }
#pragma omp simd
    for (int64_t i = 0; i < channels * width; ++i)
      product[i] = store<T>(spread[i] * load(guided[i]));
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    const T* source = guided + c * gs.channel;
    T* target = product + c * ps.channel;
    if (gs.width == 1 && ps.width == 1) {
#pragma omp simd
      for (int64_t x = 0; x < width; ++x) target[x] = store<T>(heat[x] * load(source[x]));
    } else {
      for (int64_t x = 0; x < width; ++x)
        target[x * ps.width] = store<T>(heat[x] * load(source[x * gs.width]));
    }
  }
}

Tensor guided_product(const Tensor& maps, const Tensor& guided, int64_t spatial_dims, double eps) {
  const GuidedProductOperands o(maps, guided, spatial_dims);
  if (o.product.numel() == 0) return o.product;

  dispatch(guided.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using F = arithmetic_t<T>;
    const SampleTables<F> tables(o.size, o.enlarged);
    const VolumeStrides &gs = o.guided_strides, &ps = o.product_strides;
    const int64_t height = o.enlarged.height, width = o.enlarged.width;
    const T* source = data<T>(guided);
    T* target = mutable_data<T>(o.product);
    for_row_shares(
        tables, data<F>(o.maps), o.count,
        [&](int64_t map, EnlargedRows<F, F>& enlarged, int64_t first, int64_t last) {
          const Range<F> range = enlarged.range(F(eps));
          const int64_t image = map / o.classes, klass = map % o.classes;
          const auto offset = [&](const VolumeStrides& s, int64_t z, int64_t y) {
            return image * s.image + klass * s.klass + z * s.depth + y * s.height;
          };
          std::vector<F> heat(width), spread(o.channels * width);
          for (int64_t row = first; row < last; ++row) {
            const int64_t z = row / height, y = row % height;
            enlarged.row(z, y, heat.data());
            normalize_row(range, width, heat.data());
            multiply_row(
                heat.data(), o.channels, width, source + offset(gs, z, y), gs,
                target + offset(ps, z, y), ps, spread.data());
          }
        });
  });
  return o.product;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CPU, m) {
  m.impl("guided_product", TORCH_BOX(&guided_product));
}

}  // namespace fastcam::cpu
