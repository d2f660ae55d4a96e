#include <cmath>
#include <limits>

#include "cpu/lanes.h"
#include "cpu/multigrid.h"
#include "operands/checks.h"
#include "operands/pictures.h"
#include "operands/tensors.h"

namespace fastcam::cpu {

constexpr int64_t kBlock = 1024;  // of a pass over several fields, to stay in the first-level cache
// Some ten are enough, for strips of a few rows and a thousand columns some hundred.
constexpr int kIterations = 1000;

// f(first, count) for chunks of the grid's values
template <class Function>
void for_chunks(const PixelGrid& grid, const Function& f) {
  for (int64_t i = grid.first(); i < grid.last(); i += kBlock)
    f(i, std::min(kBlock, grid.last() - i));
}

template <class F>
FASTCAM_MULTIVERSION F dot(const F* a, const F* b, int64_t count) {
  return sum<F>(
      count, [&](int64_t i) FASTCAM_INLINED { return lanes_from(a + i) * lanes_from(b + i); },
      [&](int64_t i) FASTCAM_INLINED { return a[i] * b[i]; });
}

// result = A x
FASTCAM_MULTIVERSION inline void multiply(
    const MissingPixels& a, const double* x, int64_t first, int64_t count,
    double* __restrict result) {
#pragma omp simd
  for (int64_t i = first; i < first + count; ++i) result[i] = a.times(x, i);
}

// residual = right = -A x
FASTCAM_MULTIVERSION inline void subtract_product(
    const MissingPixels& a, const double* x, int64_t first, int64_t count,
    double* __restrict residual, float* __restrict right) {
#pragma omp simd
  for (int64_t i = first; i < first + count; ++i) {
    residual[i] = -a.times(x, i);
    right[i] = static_cast<float>(residual[i]);
  }
}

// x += length direction; residual -= length product; right = residual
FASTCAM_MULTIVERSION inline void advance(
    double length, const double* direction, const double* product, int64_t count,
    double* __restrict x, double* __restrict residual, float* __restrict right) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    x[i] += length * direction[i];
    residual[i] -= length * product[i];
    right[i] = static_cast<float>(residual[i]);
  }
}

// direction = z + share direction
FASTCAM_MULTIVERSION inline void turn(
    double share, const float* z, int64_t count, double* __restrict direction) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) direction[i] = z[i] + share * direction[i];
}

template <class F>
FASTCAM_MULTIVERSION F largest_magnitude(const F* values, int64_t count) {
  F largest = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < count; ++i) {
    const F magnitude = std::fabs(values[i]);
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

// Conjugate gradients in double, each step with one V-cycle in float, which makes the error some ten times smaller. So
// the V-cycle of the residual is the error, nearly, and says when to stop.
class Imputer {
 public:
  Imputer(int64_t height, int64_t width)
      : multigrid_({height, width}),
        x_(grid().size()),
        residual_(grid().size()),
        direction_(grid().size()),
        product_(grid().size()) {}

  // known: (H, W)
  void set(const bool* known) {
    known_ = known;
    const PixelGrid& g = grid();
    known_count_ = std::count(known, known + g.points(), true);
    if (known_count_ == 0 || known_count_ == g.points()) return;
    const auto sides = [](int64_t i, int64_t extent) { return (i > 0) + (i < extent - 1); };
    multigrid_.set([&](int64_t y, int64_t x) {
      const int rows = sides(y, g.height), columns = sides(x, g.width);
      return known[y * g.width + x] ? 0.0f
                                    : static_cast<float>(2 * (rows + columns) + rows * columns);
    });
  }

  // One channel, (H, W), its missing pixels filled in. Whether the error got small enough.
  template <class T>
  bool fill(const T* image, double tolerance, T* result) {
    using F = arithmetic_t<T>;
    const PixelGrid& g = grid();
    double scale = 0;
    bool finite = true;
    for (int64_t i = 0; i < g.points(); ++i) {
      const double magnitude = known_[i] ? std::fabs(static_cast<double>(load(image[i]))) : 0;
      finite &= std::isfinite(magnitude);
      scale = std::max(scale, magnitude);
    }
    const bool trivial = known_count_ == 0 || known_count_ == g.points() || scale == 0 || !finite;
    if (!finite) scale = std::numeric_limits<double>::quiet_NaN();
    for (int64_t y = 0; y < g.height; ++y)
      for (int64_t x = 0; x < g.width; ++x) {
        const int64_t i = y * g.width + x;
        x_[g.index(y, x)] = known_[i] && !trivial ? load(image[i]) / scale : 0;
      }
    const bool solved = trivial || solve(tolerance);
    for (int64_t y = 0; y < g.height; ++y)
      for (int64_t x = 0; x < g.width; ++x) {
        const int64_t i = y * g.width + x;
        result[i] = known_[i] ? image[i] : store<T>(static_cast<F>(x_[g.index(y, x)] * scale));
      }
    return solved;
  }

 private:
  const PixelGrid& grid() const { return multigrid_.grid(); }

  // x_ holds the known pixels, whose largest magnitude is 1, and 0 at missing ones, and then what these are.
  bool solve(double tolerance) {
    int left = kIterations;
    begin();
    while (iterate(tolerance, left)) {
      // the residual that was updated on the way has drifted from the true one; the equations are times 12
      if (begin() <= 12 * 10 * tolerance) return true;
    }
    return false;
  }

  // Whether the error got below the tolerance while there are iterations left.
  bool iterate(double tolerance, int& left) {
    const PixelGrid& g = grid();
    const MissingPixels a = multigrid_.equations();
    float* right = multigrid_.right();
    double before = std::numeric_limits<double>::infinity();
    while (left-- > 0) {
      const float* z = multigrid_.inverse();
      float error = 0;
      double energy = 0, curvature = 0;
      for_chunks(g, [&](int64_t i, int64_t count) {
        energy += dot(right + i, z + i, count);
        error = std::max(error, largest_magnitude(z + i, count));
      });
      if (!(energy >= 0)) return false;
      if (error <= tolerance) return true;
      for_chunks(g, [&](int64_t i, int64_t count) {
        turn(energy / before, z + i, count, direction_.data() + i);
      });
      before = energy;
      for_chunks(g, [&](int64_t i, int64_t count) {
        multiply(a, direction_.data(), i, count, product_.data());
        curvature += dot(direction_.data() + i, product_.data() + i, count);
      });
      for_chunks(g, [&](int64_t i, int64_t count) {
        advance(
            energy / curvature, direction_.data() + i, product_.data() + i, count, x_.data() + i,
            residual_.data() + i, right + i);
      });
    }
    return false;
  }

  // The residual of x_, and its largest magnitude
  double begin() {
    double largest = 0;
    for_chunks(grid(), [&](int64_t i, int64_t count) {
      subtract_product(
          multigrid_.equations(), x_.data(), i, count, residual_.data(), multigrid_.right());
      largest = std::max(largest, largest_magnitude(residual_.data() + i, count));
    });
    return largest;
  }

  Multigrid multigrid_;
  const bool* known_ = nullptr;
  int64_t known_count_ = 0;
  std::vector<double> x_, residual_, direction_, product_;
};

Tensor impute(const Tensor& images, const Tensor& known) {
  const ImputeOperands o(images, known);
  if (o.result.numel() == 0) return o.result;
  const int64_t channels = images.size(1), height = images.size(2), width = images.size(3);
  const int64_t pixels = height * width, planes = images.size(0) * channels;
  std::vector<char> solved(planes);
  dispatch(images.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const double tolerance = std::is_same_v<T, double> ? 1e-12 : 1e-8;
    // channels of one image may be in several threads, which then all coarsen its equations
    torch::stable::parallel_for(0, planes, 1, [&](int64_t begin, int64_t end) {
      Imputer imputer(height, width);
      for (int64_t plane = begin; plane < end; ++plane) {
        if (plane == begin || plane % channels == 0)
          imputer.set(data<bool>(o.known) + plane / channels * pixels);
        solved[plane] = imputer.fill(
            data<T>(o.images) + plane * pixels, tolerance,
            mutable_data<T>(o.result) + plane * pixels);
      }
    });
  });
  for (int64_t plane = 0; plane < planes; ++plane)
    check(
        solved[plane], "known: the equations of image ", plane / channels,
        " were not solved within ", kIterations, " iterations");
  return o.result;
}

STABLE_TORCH_LIBRARY_IMPL(fastcam, CPU, m) {
  m.impl("impute", TORCH_BOX(&impute));
}

}  // namespace fastcam::cpu
