#include <limits>

#include "cpu/parallel.h"
#include "kernels/interpolate.h"
#include "operands/maps.h"
#include "operands/tensors.h"

namespace fastcam::cpu {

// min-max over one map of `positions` values
template <class T, class F>
FASTCAM_MULTIVERSION void normalize_map(const T* map, int64_t positions, F eps, F* result) {
  F low = load(map[0]), high = low;
  int nan = 0;
#pragma omp simd reduction(min : low) reduction(max : high) reduction(| : nan)
  for (int64_t p = 0; p < positions; ++p) {
    const F value = load(map[p]);
    low = value < low ? value : low;
    high = value > high ? value : high;
    nan |= value != value;
  }
  if (nan) low = high = std::numeric_limits<F>::quiet_NaN();
  const Range<F> range{low, high - low + eps};
#pragma omp simd
  for (int64_t p = 0; p < positions; ++p) result[p] = range.normalize(load(map[p]));
}

Tensor normalize(const Tensor& maps, int64_t spatial_dims, double eps) {
  const MapOperands o(maps, spatial_dims);
  Tensor result = empty({maps.sizes().begin(), maps.sizes().end()}, arithmetic_type(maps), maps);
  if (result.numel() == 0) return result;

  dispatch(maps.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using F = arithmetic_t<T>;
    const int64_t positions = o.size.positions();
    const T* source = data<T>(o.maps);
    F* target = mutable_data<F>(result);
    parallel_tasks(o.count, positions, [&](int64_t map) {
      normalize_map(source + map * positions, positions, F(eps), target + map * positions);
    });
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CPU, m) {
  m.impl("normalize", TORCH_BOX(&normalize));
}

}  // namespace fastcam::cpu
