// ReLU and its guided backward.
#include "testing.h"

#include "kernels/guided_relu.cuh"

using namespace fastcam;

namespace {

template <class T>
void test_guided_relu(int64_t count, unsigned blocks, bool unaligned, bool result_unaligned) {
  Buffer<T> input(count, unaligned), gradient(count, unaligned);
  Buffer<T> forward(count, result_unaligned), backward(count, result_unaligned);
  input.fill_normal();
  gradient.fill_normal();
  forward.fill(stored<T>(7));
  backward.fill(stored<T>(7));
  const double special[][2] = {{kNaN, 1}, {0, 1},        {1, kNaN}, {-1, kNaN},
                               {-0.0, 1}, {INFINITY, 1}, {1, 0},    {kNaN, -1}};
  for (int64_t i = 0; i < std::min<int64_t>(count, 8); ++i) {
    input[i] = stored<T>(special[i][0]);
    gradient[i] = stored<T>(special[i][1]);
  }
  emulator::launch(guided_relu_kernel<T>, grid(blocks), input.data(), count, forward.data());
  emulator::launch(
      guided_relu_backward_kernel<T>, grid(blocks), gradient.data(), input.data(), count,
      backward.data());
  for (int64_t i = 0; i < count; ++i) {
    const double x = load(input[i]), g = load(gradient[i]);
    expect_near(load(forward[i]), x < 0 ? 0 : x, 0, "guided_relu");
    expect_near(load(backward[i]), x <= 0 || g < 0 ? 0 : g, 0, "guided_relu_backward");
  }
}

template <class T>
void test_type() {
  for (bool unaligned : {false, true}) {
    for (bool result_unaligned : {false, true})
      test_guided_relu<T>(kThreads * kVector<T> + 5, 2, unaligned, result_unaligned);
    for (int64_t count : {1, 7, 1000, 20003}) test_guided_relu<T>(count, 3, unaligned, unaligned);
  }
}

}  // namespace

int main() {
  for_types([](auto element) { test_type<decltype(element)>(); });
  return report();
}
