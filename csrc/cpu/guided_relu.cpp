#include "cpu/parallel.h"
#include "cpu/stream.h"
#include "kernels/guided.h"
#include "operands.h"

namespace fastcam::cpu {

constexpr int64_t kChunk = 4096;

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

// f(first, count, target) for chunks of a result: into the result, or into a buffer that is written past the
// caches from there
template <class T, class Function>
void parallel_chunks(int64_t total, T* result, const Function& f) {
  const bool streamed = streams(total * static_cast<int64_t>(sizeof(T)));
  parallel_tasks((total + kChunk - 1) / kChunk, kChunk, [&](int64_t chunk) {
    const int64_t first = chunk * kChunk, count = std::min(kChunk, total - first);
    if (!streamed) return f(first, count, result + first);
    T buffer[kChunk];
    f(first, count, buffer);
    stream(result + first, buffer, count * static_cast<int64_t>(sizeof(T)));
  });
}

Tensor guided_relu(const Tensor& input) {
  check_floating(input, "input");
  Tensor result = torch::stable::empty_like(input);
  const Tensor x = laid_out_as(input, result);
  dispatch(input.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const T* source = data<T>(x);
    parallel_chunks(
        input.numel(), mutable_data<T>(result),
        [&](int64_t first, int64_t count, T* target) { rectify(source + first, count, target); });
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
    parallel_chunks(
        input.numel(), mutable_data<T>(result), [&](int64_t first, int64_t count, T* target) {
          guide(gradient + first, source + first, count, target);
        });
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CPU, m) {
  m.impl("guided_relu", TORCH_BOX(&guided_relu));
  m.impl("guided_relu_backward", TORCH_BOX(&guided_relu_backward));
}

}  // namespace fastcam::cpu
