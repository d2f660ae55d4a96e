#include "cpu/parallel.h"
#include "kernels/guided.h"
#include "operands/checks.h"
#include "operands/guided.h"
#include "operands/tensors.h"

namespace fastcam::cpu {

template <class T>
FASTCAM_MULTIVERSION void rectify(const T* input, int64_t count, T* __restrict result) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) result[i] = rectified(input[i]);
}

template <class T>
FASTCAM_MULTIVERSION void guide(
    const T* gradient, const T* input, int64_t count, T* __restrict result) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) result[i] = guided_gradient(gradient[i], input[i]);
}

// f(first, count) for shares of `total` elements
template <class Function>
void parallel_parts(int64_t total, const Function& f) {
  torch::stable::parallel_for(
      0, total, kElementsPerThread, [&](int64_t begin, int64_t end) { f(begin, end - begin); });
}

Tensor guided_relu(const Tensor& input) {
  check_floating(input, "input");
  Tensor result = torch::stable::empty_like(input);
  const Tensor x = laid_out_as(input, result);
  dispatch(input.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const T* source = data<T>(x);
    T* target = mutable_data<T>(result);
    parallel_parts(input.numel(), [&](int64_t first, int64_t count) {
      rectify(source + first, count, target + first);
    });
  });
  return result;
}

Tensor guided_relu_backward(const Tensor& grad_output, const Tensor& input) {
  check_guided_relu(grad_output, input);
  Tensor result = torch::stable::empty_like(input);
  const Tensor g = laid_out_as(grad_output, result), x = laid_out_as(input, result);
  dispatch(input.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const T *gradient = data<T>(g), *source = data<T>(x);
    T* target = mutable_data<T>(result);
    parallel_parts(input.numel(), [&](int64_t first, int64_t count) {
      guide(gradient + first, source + first, count, target + first);
    });
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CPU, m) {
  m.impl("guided_relu", TORCH_BOX(&guided_relu));
  m.impl("guided_relu_backward", TORCH_BOX(&guided_relu_backward));
}

}  // namespace fastcam::cpu
