// Multigrid for nine-point equations on a grid of pixels: a V-cycle approximates their inverse.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/parallel.h"
#include "kernels/platform.h"

namespace fastcam::cpu {

// Values on a grid with a frame of zeros: no neighbour needs a bound, and a loop over all values is one loop from
// first() to last(). The frame is wide enough for the coarser grid's points beyond an even extent.
struct PixelGrid {
  int64_t height, width;

  int64_t stride() const { return width + 2; }
  int64_t index(int64_t y, int64_t x) const { return (y + 1) * stride() + x + 1; }
  int64_t first() const { return index(0, 0); }
  int64_t last() const { return index(height - 1, width); }
  int64_t size() const { return (height + 4) * stride(); }
  int64_t points() const { return height * width; }

  bool halves_rows() const { return height > 2; }
  bool halves_columns() const { return width > 2; }
  // Every second pixel, and one beyond where the extent is even
  PixelGrid rows_halved() const { return {halves_rows() ? height / 2 + 1 : height, width}; }
  PixelGrid columns_halved() const { return {height, halves_columns() ? width / 2 + 1 : width}; }
};

// The equations of the missing pixels, times 12: (2 sides + corners) x_i - 2 sum of x at the sides - sum of x at the
// corners, over the neighbours that exist. 0 at known pixels; x is 0 there.
struct MissingPixels {
  const float* diagonal;  // 2 sides + corners, 0 where a pixel is known
  int64_t stride;

  template <class F>
  FASTCAM_HOST_DEVICE F only(int64_t i, F value) const {
    return diagonal[i] != 0 ? value : F(0);
  }

  template <class F>
  FASTCAM_HOST_DEVICE F times(const F* x, int64_t i) const {
    const F sides = (x[i - 1] + x[i + 1]) + (x[i - stride] + x[i + stride]);
    const F corners =
        (x[i - stride - 1] + x[i - stride + 1]) + (x[i + stride - 1] + x[i + stride + 1]);
    return only(i, F(diagonal[i]) * x[i] - (sides + sides) - corners);
  }

  FASTCAM_HOST_DEVICE float center(int64_t i) const { return diagonal[i]; }
  FASTCAM_HOST_DEVICE float east(int64_t i) const { return coupling(-2, i, i + 1); }
  FASTCAM_HOST_DEVICE float south(int64_t i) const { return coupling(-2, i, i + stride); }
  FASTCAM_HOST_DEVICE float diagonal_down(int64_t i) const {
    return coupling(-1, i, i + stride + 1);
  }
  FASTCAM_HOST_DEVICE float diagonal_up(int64_t i) const { return coupling(-1, i + 1, i + stride); }

 private:
  FASTCAM_HOST_DEVICE float coupling(float weight, int64_t i, int64_t j) const {
    return only(i, only(j, weight));
  }
};

// Any symmetric nine-point equations: at i its own coefficient and those of four pairs, of which the last is that of
// i's right and lower neighbours.
struct Stencil {
  const float *centers, *easts, *souths, *diagonals_down, *diagonals_up;
  int64_t stride;

  template <class F>
  FASTCAM_HOST_DEVICE F only(int64_t, F value) const {
    return value;
  }

  FASTCAM_HOST_DEVICE float times(const float* x, int64_t i) const {
    const int64_t above = i - stride, below = i + stride;
    const float sides = (easts[i] * x[i + 1] + easts[i - 1] * x[i - 1]) +
                        (souths[i] * x[below] + souths[above] * x[above]);
    const float corners =
        (diagonals_down[i] * x[below + 1] + diagonals_down[above - 1] * x[above - 1]) +
        (diagonals_up[i - 1] * x[below - 1] + diagonals_up[above] * x[above + 1]);
    return centers[i] * x[i] + (sides + corners);
  }

  FASTCAM_HOST_DEVICE float center(int64_t i) const { return centers[i]; }
  FASTCAM_HOST_DEVICE float east(int64_t i) const { return easts[i]; }
  FASTCAM_HOST_DEVICE float south(int64_t i) const { return souths[i]; }
  FASTCAM_HOST_DEVICE float diagonal_down(int64_t i) const { return diagonals_down[i]; }
  FASTCAM_HOST_DEVICE float diagonal_up(int64_t i) const { return diagonals_up[i]; }
};

struct Coefficients {
  std::vector<float> center, east, south, diagonal_down, diagonal_up;

  Coefficients() = default;
  explicit Coefficients(const PixelGrid& grid)
      : center(grid.size()),
        east(grid.size()),
        south(grid.size()),
        diagonal_down(grid.size()),
        diagonal_up(grid.size()) {}

  Stencil stencil(const PixelGrid& grid) const {
    return {center.data(),        east.data(),        south.data(),
            diagonal_down.data(), diagonal_up.data(), grid.stride()};
  }
};

// P^T A P for linear interpolation P along one dimension: coarse point I is 1 at 2 I and 1/2 at its neighbours there.
template <bool kRows, class Equations>
FASTCAM_MULTIVERSION void coarsen(
    const Equations& a, const PixelGrid& fine, const PixelGrid& coarse, Coefficients& result) {
  float* __restrict center = result.center.data();
  float* __restrict across_of = (kRows ? result.east : result.south).data();
  float* __restrict along_of = (kRows ? result.south : result.east).data();
  float* __restrict diagonal_down = result.diagonal_down.data();
  float* __restrict diagonal_up = result.diagonal_up.data();
  const int64_t step = kRows ? fine.stride() : 1;
  const auto along = [&](int64_t i) FASTCAM_INLINED { return kRows ? a.south(i) : a.east(i); };
  const auto across = [&](int64_t i) FASTCAM_INLINED { return kRows ? a.east(i) : a.south(i); };
  for (int64_t y = 0; y < coarse.height; ++y) {
    const int64_t target = coarse.index(y, 0), source = fine.index(kRows ? 2 * y : y, 0);
#pragma omp simd
    for (int64_t x = 0; x < coarse.width; ++x) {
      const int64_t o = target + x, i = source + (kRows ? x : 2 * x);
      const int64_t before = i - step, after = i + step;
      center[o] =
          a.center(i) + 0.25f * (a.center(before) + a.center(after)) + along(before) + along(i);
      const float pairs = (a.diagonal_down(before) + a.diagonal_up(before)) +
                          (a.diagonal_down(i) + a.diagonal_up(i));
      across_of[o] = across(i) + 0.25f * (across(before) + across(after)) + 0.5f * pairs;
      along_of[o] = 0.5f * (along(i) + along(after)) + 0.25f * a.center(after);
      diagonal_down[o] =
          0.5f * (a.diagonal_down(i) + a.diagonal_down(after)) + 0.25f * across(after);
      diagonal_up[o] = 0.5f * (a.diagonal_up(i) + a.diagonal_up(after)) + 0.25f * across(after);
    }
  }
}

// Damped Jacobi: what a residual is multiplied by. The denominator is at least half the sum of a row's magnitudes, so
// a step never overshoots, whatever the signs (Gershgorin).
template <class Equations>
FASTCAM_MULTIVERSION void relaxation(
    const Equations& a, const PixelGrid& grid, float* __restrict factors) {
  constexpr float kDamping = 0.9f;
  const int64_t s = grid.stride(), last = grid.last();
#pragma omp simd
  for (int64_t i = grid.first(); i < last; ++i) {
    const float sides = std::fabs(a.east(i)) + std::fabs(a.east(i - 1)) + std::fabs(a.south(i)) +
                        std::fabs(a.south(i - s));
    const float corners = std::fabs(a.diagonal_down(i)) + std::fabs(a.diagonal_down(i - s - 1)) +
                          std::fabs(a.diagonal_up(i - 1)) + std::fabs(a.diagonal_up(i - s));
    const float center = a.center(i);
    const float half = 0.5f * (center + sides + corners);
    factors[i] = center > 0 ? kDamping / (center > half ? center : half) : 0.0f;
  }
}

// x = factors right; residual = right - A x
template <class Equations>
FASTCAM_MULTIVERSION void relax_from_zero(
    const Equations& a, const PixelGrid& grid, const float* factors, const float* right,
    float* __restrict x, float* __restrict residual) {
  const int64_t last = grid.last();
#pragma omp simd
  for (int64_t i = grid.first(); i < last; ++i) x[i] = factors[i] * right[i];
#pragma omp simd
  for (int64_t i = grid.first(); i < last; ++i) residual[i] = right[i] - a.times(x, i);
}

// relaxed = x + factors (right - A x)
template <class Equations>
FASTCAM_MULTIVERSION void relax(
    const Equations& a, const PixelGrid& grid, const float* factors, const float* right,
    const float* x, float* __restrict relaxed) {
  const int64_t last = grid.last();
#pragma omp simd
  for (int64_t i = grid.first(); i < last; ++i)
    relaxed[i] = x[i] + factors[i] * (right[i] - a.times(x, i));
}

// result = P^T values
FASTCAM_MULTIVERSION inline void restrict_to(
    const PixelGrid& fine, const float* values, const PixelGrid& coarse, float* __restrict row,
    float* __restrict result) {
  const int64_t width = fine.stride() + 1;  // from one left of the first pixel
  for (int64_t y = 0; y < coarse.height; ++y) {
    float* target = result + coarse.index(y, 0);
    const float* source = values + fine.index(fine.halves_rows() ? 2 * y : y, -1);
    if (fine.halves_rows()) {
      const float *above = source - fine.stride(), *below = source + fine.stride();
#pragma omp simd
      for (int64_t x = 0; x < width; ++x) row[x] = source[x] + 0.5f * (above[x] + below[x]);
      source = row;
    }
    if (fine.halves_columns()) {
#pragma omp simd
      for (int64_t x = 0; x < coarse.width; ++x)
        target[x] = source[2 * x + 1] + 0.5f * (source[2 * x] + source[2 * x + 2]);
    } else {
      for (int64_t x = 0; x < coarse.width; ++x) target[x] = source[x + 1];
    }
  }
}

// x += P values, where the fine equations have unknowns
template <class Equations>
FASTCAM_MULTIVERSION void add_interpolated(
    const Equations& a, const PixelGrid& coarse, const float* values, const PixelGrid& fine,
    float* __restrict row, float* __restrict wide, float* __restrict x) {
  for (int64_t y = 0; y < fine.height; ++y) {
    const float* source = values + coarse.index(fine.halves_rows() ? y / 2 : y, 0);
    if (fine.halves_rows() && y % 2) {
      const float* below = source + coarse.stride();
#pragma omp simd
      for (int64_t i = 0; i < coarse.width; ++i) row[i] = 0.5f * (source[i] + below[i]);
      source = row;
    }
    if (fine.halves_columns()) {
#pragma omp simd
      for (int64_t i = 0; i < coarse.width - 1; ++i) {
        wide[2 * i] = source[i];
        wide[2 * i + 1] = 0.5f * (source[i] + source[i + 1]);
      }
      wide[2 * coarse.width - 2] = source[coarse.width - 1];
      source = wide;
    }
    const int64_t first = fine.index(y, 0);
#pragma omp simd
    for (int64_t i = 0; i < fine.width; ++i) x[first + i] += a.only(first + i, source[i]);
  }
}

// The coarsest equations, few: A = L D L^T. A pivot that is rounding is one of an unknown that others make up for.
class FewEquations {
 public:
  FewEquations() = default;

  template <class Equations>
  FewEquations(const Equations& a, const PixelGrid& grid)
      : grid_(grid), count_(grid.points()), matrix_(count_ * count_), right_(count_) {
    const auto pair = [&](int64_t y, int64_t x, int64_t v, int64_t u, float value) {
      if (v >= grid.height || u >= grid.width || u < 0) return;
      at(y * grid.width + x, v * grid.width + u) = at(v * grid.width + u, y * grid.width + x) =
          value;
    };
    for (int64_t y = 0; y < grid.height; ++y)
      for (int64_t x = 0; x < grid.width; ++x) {
        const int64_t i = grid.index(y, x);
        pair(y, x, y, x, a.center(i));
        pair(y, x, y, x + 1, a.east(i));
        pair(y, x, y + 1, x, a.south(i));
        pair(y, x, y + 1, x + 1, a.diagonal_down(i));
        pair(y, x, y + 1, x - 1, a.diagonal_up(i - 1));
      }
    factorize();
  }

  void solve(const float* right, float* x) {
    for (int64_t i = 0; i < count_; ++i) {
      right_[i] = right[index(i)];
      for (int64_t k = 0; k < i; ++k) right_[i] -= at(i, k) * right_[k];
    }
    for (int64_t i = count_ - 1; i >= 0; --i) {
      right_[i] = at(i, i) > 0 ? right_[i] / at(i, i) : 0;
      for (int64_t k = i + 1; k < count_; ++k) right_[i] -= at(k, i) * right_[k];
      x[index(i)] = static_cast<float>(right_[i]);
    }
  }

 private:
  double& at(int64_t row, int64_t column) { return matrix_[row * count_ + column]; }
  int64_t index(int64_t i) const { return grid_.index(i / grid_.width, i % grid_.width); }

  // D on the diagonal, 0 for a pivot that is left out; L below it
  void factorize() {
    constexpr double kRounding = 1e-5;
    for (int64_t i = 0; i < count_; ++i) {
      for (int64_t j = 0; j < i; ++j) {
        double value = at(i, j);
        for (int64_t k = 0; k < j; ++k) value -= at(i, k) * at(j, k) * at(k, k);
        at(i, j) = at(j, j) > 0 ? value / at(j, j) : 0;
      }
      double pivot = at(i, i);
      for (int64_t k = 0; k < i; ++k) pivot -= at(i, k) * at(i, k) * at(k, k);
      at(i, i) = pivot > kRounding * at(i, i) ? pivot : 0;
    }
  }

  PixelGrid grid_;
  int64_t count_ = 0;
  std::vector<double> matrix_, right_;
};

// The equations of missing pixels, on grids from that of the image to one of a few points, each with the Galerkin
// equations P^T A P of the one before.
class Multigrid {
 public:
  explicit Multigrid(const PixelGrid& image) {
    levels_.emplace_back(image);
    while (levels_.back().grid.points() > kFewPoints) {
      levels_.emplace_back(levels_.back().rows.columns_halved());
      Level& coarse = levels_.back();
      coarse.equations = Coefficients(coarse.grid);
    }
    for (Level& level : levels_) level.between = Coefficients(level.rows);
    diagonal_.resize(image.size());
    const int64_t longest = image.stride() + 2;
    row_.resize(longest), wide_.resize(longest);
  }

  const PixelGrid& grid() const { return levels_[0].grid; }
  MissingPixels equations() const { return {diagonal_.data(), grid().stride()}; }

  // For the diagonal of MissingPixels at [0, height) x [0, width)
  template <class DiagonalAt>
  void set(const DiagonalAt& diagonal_at) {
    for (int64_t y = 0; y < grid().height; ++y)
      for (int64_t x = 0; x < grid().width; ++x) diagonal_[grid().index(y, x)] = diagonal_at(y, x);
    for (size_t k = 0; k + 1 < levels_.size(); ++k)
      at_level(k, [&](const auto& equations) { coarsen_level(equations, k); });
    at_level(levels_.size() - 1, [&](const auto& equations) {
      coarsest_ = FewEquations(equations, levels_.back().grid);
    });
  }

  // Where inverse() finds the right side, 0 at known pixels and in the frame
  float* right() { return levels_[0].right.data(); }

  // One V-cycle, a symmetric positive definite approximation of A^-1 right
  const float* inverse() {
    const size_t last = levels_.size() - 1;
    for (size_t k = 0; k < last; ++k) {
      Level& level = levels_[k];
      at_level(k, [&](const auto& equations) {
        relax_from_zero(
            equations, level.grid, level.factors.data(), level.right.data(), level.x.data(),
            level.other.data());
      });
      Level& coarse = levels_[k + 1];
      restrict_to(level.grid, level.other.data(), coarse.grid, row_.data(), coarse.right.data());
    }
    coarsest_.solve(levels_[last].right.data(), levels_[last].x.data());
    for (size_t k = last; k-- > 0;) {
      Level& level = levels_[k];
      const Level& coarse = levels_[k + 1];
      at_level(k, [&](const auto& equations) {
        add_interpolated(
            equations, coarse.grid, coarse.x.data(), level.grid, row_.data(), wide_.data(),
            level.x.data());
        relax(
            equations, level.grid, level.factors.data(), level.right.data(), level.x.data(),
            level.other.data());
      });
      level.x.swap(level.other);
    }
    return levels_[0].x.data();
  }

 private:
  static constexpr int64_t kFewPoints = 16;

  struct Level {
    PixelGrid grid, rows;             // rows: of every second row of the grid
    Coefficients equations, between;  // between: those of rows
    std::vector<float> factors, right, x, other;

    explicit Level(const PixelGrid& g)
        : grid(g),
          rows(g.rows_halved()),
          factors(g.size()),
          right(g.size()),
          x(g.size()),
          other(g.size()) {}
  };

  template <class Function>
  void at_level(size_t k, const Function& f) const {
    if (k == 0) {
      f(equations());
    } else {
      f(levels_[k].equations.stencil(levels_[k].grid));
    }
  }

  template <class Equations>
  void coarsen_level(const Equations& equations, size_t k) {
    Level &level = levels_[k], &coarse = levels_[k + 1];
    relaxation(equations, level.grid, level.factors.data());
    if (!level.grid.halves_columns()) {
      coarsen<true>(equations, level.grid, coarse.grid, coarse.equations);
    } else if (!level.grid.halves_rows()) {
      coarsen<false>(equations, level.grid, coarse.grid, coarse.equations);
    } else {
      coarsen<true>(equations, level.grid, level.rows, level.between);
      coarsen<false>(level.between.stencil(level.rows), level.rows, coarse.grid, coarse.equations);
    }
  }

  std::vector<Level> levels_;
  std::vector<float> diagonal_, row_, wide_;
  FewEquations coarsest_;
};

}  // namespace fastcam::cpu
