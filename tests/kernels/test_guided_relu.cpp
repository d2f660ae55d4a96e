// ReLU and its guided backward.
#include "testing.h"

#include "kernels/guided_relu.cuh"

using namespace fastcam;

namespace {

template <class T>
void run(const Buffer<T>& input, const Buffer<T>& gradient, unsigned blocks, bool unaligned) {
  const int64_t count = input.size();
  Buffer<T> forward(count, unaligned), backward(count, unaligned);
  forward.fill(stored<T>(7));
  backward.fill(stored<T>(7));
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
void test_guided_relu(int64_t count, unsigned blocks, bool unaligned, bool result_unaligned) {
  Buffer<T> input(count, unaligned), gradient(count, unaligned);
  input.fill_normal();
  gradient.fill_normal();
  const double special[][2] = {{kNaN, 1},      {0, 1},    {1, kNaN},     {-1, kNaN}, {-0.0, 1},
                               {INFINITY, 1},  {1, 0},    {kNaN, -1},    {-kNaN, 1}, {1, -kNaN},
                               {-INFINITY, 1}, {1, -0.0}, {1, -INFINITY}};
  for (int64_t i = 0; i < std::min<int64_t>(count, std::size(special)); ++i) {
    input[i] = stored<T>(special[i][0]);
    gradient[i] = stored<T>(special[i][1]);
  }
  run(input, gradient, blocks, result_unaligned);
}

// A type of 16 bits is looked at bit by bit: here every value of it
template <class T>
void test_every_value() {
  Buffer<T> input(65536), gradient(65536);
  for (int64_t i = 0; i < 65536; ++i) {
    input[i].bits = static_cast<uint16_t>(i);
    gradient[i].bits = static_cast<uint16_t>(i * 40503);
  }
  run(input, gradient, 3, false);
  run(gradient, input, 3, false);
  gradient.fill(stored<T>(1));
  run(gradient, input, 3, false);
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
  test_every_value<float16>();
  test_every_value<bfloat16>();
  return report();
}
