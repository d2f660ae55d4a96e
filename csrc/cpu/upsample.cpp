#include "cpu/enlarge.h"
#include "operands/maps.h"
#include "operands/tensors.h"

namespace fastcam::cpu {

Tensor upsample(const Tensor& maps, std::vector<int64_t> size, bool normalize, double eps) {
  const UpsampleOperands o(maps, size);
  Tensor result = empty(o.shape, arithmetic_type(maps), maps);
  if (result.numel() == 0) return result;

  dispatch(maps.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using F = arithmetic_t<T>;
    const SampleTables<F> tables(o.size, o.enlarged);
    const auto [depth, height, width] = o.enlarged;
    F* target = mutable_data<F>(result);
    for_row_shares(
        tables, data<T>(o.maps), o.count,
        [&, depth = depth, height = height, width = width](
            int64_t map, EnlargedRows<T, F>& enlarged, int64_t first, int64_t last) {
          const Range<F> range = normalize ? enlarged.range(F(eps)) : Range<F>{};
          for (int64_t row = first; row < last; ++row) {
            F* values = target + (map * depth * height + row) * width;
            enlarged.row(row / height, row % height, values);
            if (normalize) normalize_row(range, width, values);
          }
        });
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CPU, m) {
  m.impl("upsample", TORCH_BOX(&upsample));
}

}  // namespace fastcam::cpu
