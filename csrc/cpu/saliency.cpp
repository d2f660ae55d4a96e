#include "operands/saliency.h"
#include "cpu/maps.h"

namespace fastcam::cpu {

// The small map stays in the cache between the two: there is nothing to gain from one loop.
Tensor saliency(
    const Tensor& activations, const Tensor& gradients, std::string method,
    std::vector<int64_t> size, bool relu, bool normalize, double eps) {
  check_size(activations, size);
  return upsample(cam(activations, gradients, method, relu, eps), size, normalize, 0);
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CPU, m) {
  m.impl("saliency", TORCH_BOX(&saliency));
}

}  // namespace fastcam::cpu
