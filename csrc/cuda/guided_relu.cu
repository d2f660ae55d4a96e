#include "kernels/guided_relu.cuh"

#include "cuda/launch.h"
#include "operands/guided.h"

namespace fastcam::cuda {

// Each block has a pack for each of its threads, at least.
template <class T>
int64_t blocks_for(const Tensor& x) {
  return std::clamp<int64_t>(ceil_div(x.numel(), kVector<T> * kThreads), 1, 16384);
}

Tensor guided_relu(const Tensor& input) {
  check_floating(input, "input");
  const Launch launch(input);
  Tensor result = torch::stable::empty_like(input);
  if (result.numel() == 0) return result;

  const Tensor x = laid_out_as(input, result);
  dispatch(input.scalar_type(), [&](auto element) {
    using T = decltype(element);
    launch(guided_relu_kernel<T>, blocks_for<T>(x), data<T>(x), x.numel(), mutable_data<T>(result));
  });
  return result;
}

Tensor guided_relu_backward(const Tensor& grad_output, const Tensor& input) {
  check_guided_relu(grad_output, input);
  const Launch launch(input);
  Tensor result = torch::stable::empty_like(input);
  if (result.numel() == 0) return result;

  const Tensor g = laid_out_as(grad_output, result), x = laid_out_as(input, result);
  dispatch(input.scalar_type(), [&](auto element) {
    using T = decltype(element);
    launch(
        guided_relu_backward_kernel<T>, blocks_for<T>(x), data<T>(g), data<T>(x), x.numel(),
        mutable_data<T>(result));
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CUDA, m) {
  m.impl("guided_relu", TORCH_BOX(&guided_relu));
  m.impl("guided_relu_backward", TORCH_BOX(&guided_relu_backward));
}

}  // namespace fastcam::cuda
