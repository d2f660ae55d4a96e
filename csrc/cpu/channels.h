// The two loops of every map: a channel's sums over positions, and a map's sum over channels.
//
// contiguous: channels are taken in tiles that stay in the second-level cache, so that activations and
// gradients come from memory once however often a method looks at them. channels_last: whole rows of channels
// are walked, first for the weights, then for the map. The words are those of kernels/plan.h.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "cpu/lanes.h"
#include "cpu/parallel.h"
#include "kernels/layout.h"
#include "kernels/methods.h"
#include "kernels/scalar.h"

namespace fastcam::cpu {

struct Tile {
  int64_t image, begin, end;  // channels begin to end of one image
};

constexpr int64_t kMaxTile = 256;

// Channels of a tile: those whose positions stay in the second-level cache.
template <class T>
int64_t tile_channels(int64_t positions) {
  constexpr int64_t kCacheBytes = 256 * 1024, kUnit = 8;
  const int64_t fitting = kCacheBytes / (std::max<int64_t>(positions, 1) * sizeof(T));
  return std::clamp(fitting / kUnit * kUnit, kUnit, kMaxTile);
}

// Calls loop(s, t) with the stride 1 known to the compiler.
template <class Loop>
FASTCAM_HOST_DEVICE void with_strides(int64_t s, int64_t t, const Loop& loop) {
  constexpr std::integral_constant<int64_t, 1> one;
  if (s == 1 && t == 1) {
    loop(one, one);
  } else {
    loop(s, t);
  }
}

// Calls loop(term); an eps of 0 is known to the compiler, and its division falls away.
template <class F, class Method, class Loop>
FASTCAM_HOST_DEVICE void with_term(const Method& method, const Loop& loop) {
  if constexpr (Method::kTermUsesTotal) {
    if (method.eps == 0)
      return loop([](F activation, F gradient, F total)
                      FASTCAM_INLINED { return Method{0}.term(activation, gradient, total); });
  }
  loop([=](F activation, F gradient, F total)
           FASTCAM_INLINED { return method.term(activation, gradient, total); });
}

// The sum of f(A, g, w) over `count` elements that lie a stride apart; w is constant.
template <class F, class Wide, class T, class AStride, class GStride, class Function>
FASTCAM_HOST_DEVICE F sum_elements(
    Wide wide, const T* a, AStride a_stride, const T* g, GStride g_stride, F w, int64_t count,
    const Function& f) {
  const auto value = [&, w](F activation, F gradient)
                         FASTCAM_INLINED { return f(activation, gradient, w); };
  return sum<F>(
      count,
      [&](int64_t i) FASTCAM_INLINED {
        return each_lane<F>(
            value, load_lanes(wide, a + i * a_stride, a_stride),
            load_lanes(wide, g + i * g_stride, g_stride));
      },
      [&](int64_t i)
          FASTCAM_INLINED { return value(load(a[i * a_stride]), load(g[i * g_stride])); });
}

// A method's total, as a method whose weight it is
template <class F, class Method>
struct Total {
  static constexpr bool kUsesActivations = false;
  static constexpr bool kTermUsesTotal = false;
  Method method;

  FASTCAM_HOST_DEVICE F term(F a, F, F) const { return method.summand(a); }
  FASTCAM_HOST_DEVICE F weight(F sum, F, int64_t) const { return sum; }
};

// weights[c] of a channel-weight method, contiguous, for the channels c of a tile, counted from its first.
// Chunks of positions are added up in double: long sums lose nothing, short ones pay nothing.
template <class T, class F, class Method>
void weights_contiguous(
    const Features<T>& a, const Features<T>& g, const Tile& tile, int64_t klass, int64_t positions,
    const Method& method, const F* totals, F* __restrict weights) {
  vectorized([&](auto wide) FASTCAM_INLINED {
    constexpr int64_t kChunk = 1024;
    const T* a_data = a.at(tile.image, 0, tile.begin);
    const T* g_data = g.at(tile.image, klass, tile.begin);
    with_term<F>(method, [&](const auto& term) FASTCAM_INLINED {
      with_strides(
          a.strides.position, g.strides.position,
          [&](auto a_stride, auto g_stride) FASTCAM_INLINED {
            for (int64_t c = 0; c < tile.end - tile.begin; ++c) {
              const T* a_row = a_data + c * a.strides.channel;
              const T* g_row = g_data + c * g.strides.channel;
              const F total = Method::kUsesActivations ? totals[c] : F(0);
              const auto chunk = [&](int64_t first, int64_t count) FASTCAM_INLINED {
                return sum_elements(
                    wide, a_row + first * a_stride, a_stride, g_row + first * g_stride, g_stride,
                    total, count, term);
              };
              if (positions <= kChunk) {
                weights[c] = chunk(0, positions);
              } else {
                double sum = 0;
                for (int64_t first = 0; first < positions; first += kChunk)
                  sum += chunk(first, std::min(kChunk, positions - first));
                weights[c] = static_cast<F>(sum);
              }
            }
          });
    });
#pragma omp simd
    for (int64_t c = 0; c < tile.end - tile.begin; ++c)
      weights[c] =
          method.weight(weights[c], Method::kUsesActivations ? totals[c] : F(0), positions);
  });
}

template <class T, class F, class Method>
void totals_contiguous(
    const Features<T>& a, const Tile& tile, int64_t positions, const Method& method, F* totals) {
  const F* none = nullptr;
  weights_contiguous(a, a, tile, 0, positions, Total<F, Method>{method}, none, totals);
}

// map[p] += sum over the tile's channels of f(A, g, w_c), contiguous
template <class T, class F, class Function>
void add_contiguous(
    const Features<T>& a, const Features<T>& g, const Tile& tile, int64_t klass, int64_t positions,
    const F* weights, const Function& f, F* __restrict map) {
  vectorized([&](auto wide) FASTCAM_INLINED {
    constexpr int64_t kChunk = 1024, kTogether = 4, n = kLanes<F>;
    const int64_t channels = tile.end - tile.begin;
    const Strides &as = a.strides, &gs = g.strides;
    with_strides(as.position, gs.position, [&](auto a_stride, auto g_stride) FASTCAM_INLINED {
      for (int64_t first = 0; first < positions; first += kChunk) {
        const int64_t last = std::min(first + kChunk, positions);
        for (int64_t c = 0; c < channels; c += kTogether) {
          const int64_t count = std::min(kTogether, channels - c);
          const T *a_rows[kTogether], *g_rows[kTogether];
          F w[kTogether];
          for (int64_t i = 0; i < count; ++i) {
            a_rows[i] = a.at(tile.image, 0, tile.begin + c + i);
            g_rows[i] = g.at(tile.image, klass, tile.begin + c + i);
            w[i] = Function::kUsesWeight ? weights[c + i] : F(0);
          }
          const auto lanes_at = [&](int64_t i, int64_t p) FASTCAM_INLINED {
            const F weight = w[i];
            return each_lane<F>(
                [&, weight](F activation, F gradient)
                    FASTCAM_INLINED { return f(activation, gradient, weight); },
                load_lanes(wide, a_rows[i] + p * a_stride, a_stride),
                load_lanes(wide, g_rows[i] + p * g_stride, g_stride));
          };
          const auto value_at = [&](int64_t i, int64_t p) FASTCAM_INLINED {
            return f(load(a_rows[i][p * a_stride]), load(g_rows[i][p * g_stride]), w[i]);
          };
          int64_t p = first;
          if (count == kTogether) {
            for (; p + n <= last; p += n)
              store_lanes<F>(
                  lanes_from(map + p) +
                      ((lanes_at(0, p) + lanes_at(1, p)) + (lanes_at(2, p) + lanes_at(3, p))),
                  map + p);
            for (; p < last; ++p)
              map[p] += (value_at(0, p) + value_at(1, p)) + (value_at(2, p) + value_at(3, p));
          } else {
            for (int64_t i = 0; i < count; ++i)
              for (p = first; p < last; ++p) map[p] += value_at(i, p);
          }
        }
      }
    });
  });
}

// sums[c] = sum over positions first to last of term(A, g, total_c), channels_last
template <class T, class F, class Method>
void sum_channels_last(
    const T* a, const T* g, const Strides& as, const Strides& gs, int64_t first, int64_t last,
    int64_t channels, const Method& method, const F* totals, double* __restrict sums) {
  vectorized([&](auto wide) FASTCAM_INLINED {
    constexpr int64_t kChunk = 64, kTogether = 4, kWidth = 1024, n = kLanes<F>;
    with_term<F>(method, [&](const auto& term) FASTCAM_INLINED {
      F chunk[kWidth];
      std::fill_n(sums, channels, 0.0);
      with_strides(as.channel, gs.channel, [&](auto a_stride, auto g_stride) FASTCAM_INLINED {
        for (int64_t begin = 0; begin < channels; begin += kWidth) {
          const int64_t width = std::min(kWidth, channels - begin);
          const auto total_at = [&](int64_t c) FASTCAM_INLINED {
            return Method::kUsesActivations ? totals[begin + c] : F(0);
          };
          for (int64_t p = first; p < last; p += kChunk) {
            const int64_t end = std::min(p + kChunk, last);
            std::fill_n(chunk, width, F(0));
            for (int64_t q = p; q < end; q += kTogether) {
              const int64_t count = std::min(kTogether, end - q);
              const T* a_rows = a + q * as.position + begin * as.channel;
              const T* g_rows = g + q * gs.position + begin * gs.channel;
              int64_t c = 0;
              for (; c + n <= width; c += n) {
                const Lanes<F> total =
                    Method::kUsesActivations ? lanes_from(totals + begin + c) : Lanes<F>{};
                const auto lanes_at = [&](int64_t i) FASTCAM_INLINED {
                  return each_lane<F>(
                      term, load_lanes(wide, a_rows + i * as.position + c * a_stride, a_stride),
                      load_lanes(wide, g_rows + i * gs.position + c * g_stride, g_stride), total);
                };
                Lanes<F> sum = lanes_from(chunk + c);
                if (count == kTogether) {
                  sum += (lanes_at(0) + lanes_at(1)) + (lanes_at(2) + lanes_at(3));
                } else {
                  for (int64_t i = 0; i < count; ++i) sum += lanes_at(i);
                }
                store_lanes<F>(sum, chunk + c);
              }
              for (; c < width; ++c) {
                for (int64_t i = 0; i < count; ++i)
                  chunk[c] += term(
                      load(a_rows[i * as.position + c * a_stride]),
                      load(g_rows[i * gs.position + c * g_stride]), total_at(c));
              }
            }
            for (int64_t c = 0; c < width; ++c) sums[begin + c] += chunk[c];
          }
        }
      });
    });
  });
}

// weights[c] of a channel-weight method of one image, channels_last, in parallel over slices of the
// positions. They depend on the shape alone, so the same input gives the same bits with any number of threads.
template <class T, class F, class Method>
void weights_channels_last(
    const Features<T>& a, const Features<T>& g, int64_t image, int64_t klass, int64_t channels,
    int64_t positions, const Method& method, const F* totals, F* weights) {
  constexpr int64_t kSliceElements = 65536, kMaxSlices = 16;
  const int64_t slices = std::clamp<int64_t>(positions * channels / kSliceElements, 1, kMaxSlices);
  std::vector<double> sums(slices * channels);
  parallel_tasks(slices, positions * channels / slices, [&](int64_t slice) {
    sum_channels_last(
        a.at(image, 0, 0), g.at(image, klass, 0), a.strides, g.strides, positions * slice / slices,
        positions * (slice + 1) / slices, channels, method, totals, &sums[slice * channels]);
  });
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0;
    for (int64_t slice = 0; slice < slices; ++slice) sum += sums[slice * channels + c];
    weights[c] =
        method.weight(static_cast<F>(sum), Method::kUsesActivations ? totals[c] : F(0), positions);
  }
}

template <class T, class F, class Method>
void totals_channels_last(
    const Features<T>& a, int64_t image, int64_t channels, int64_t positions, const Method& method,
    F* totals) {
  const F* none = nullptr;
  weights_channels_last(
      a, a, image, 0, channels, positions, Total<F, Method>{method}, none, totals);
}

// map[p] = ReLU(sum over channels of f(A, g, w_c)), channels_last, positions first to last
template <class T, class F, class Function>
void map_channels_last(
    const T* a, const T* g, const Strides& as, const Strides& gs, int64_t first, int64_t last,
    int64_t channels, const F* weights, const Function& f, bool rectify, F* __restrict map) {
  vectorized([&](auto wide) FASTCAM_INLINED {
    constexpr int64_t kTogether = 4, n = kLanes<F>;
    with_strides(as.channel, gs.channel, [&](auto a_stride, auto g_stride) FASTCAM_INLINED {
      // `count` rows from p on
      const auto sum = [&](int64_t p, auto count) FASTCAM_INLINED {
        const T* a_rows = a + p * as.position;
        const T* g_rows = g + p * gs.position;
        Lanes<F> sums[count] = {};
        F rest[count] = {};
        int64_t c = 0;
        for (; c + n <= channels; c += n) {
          const Lanes<F> weight = Function::kUsesWeight ? lanes_from(weights + c) : Lanes<F>{};
          for (int64_t i = 0; i < count; ++i)
            sums[i] += each_lane<F>(
                f, load_lanes(wide, a_rows + i * as.position + c * a_stride, a_stride),
                load_lanes(wide, g_rows + i * gs.position + c * g_stride, g_stride), weight);
        }
        for (; c < channels; ++c) {
          const F weight = Function::kUsesWeight ? weights[c] : F(0);
          for (int64_t i = 0; i < count; ++i)
            rest[i] +=
                f(load(a_rows[i * as.position + c * a_stride]),
                  load(g_rows[i * gs.position + c * g_stride]), weight);
        }
        for (int64_t i = 0; i < count; ++i) {
          const F value = sum_of_lanes<F>(sums[i]) + rest[i];
          map[p + i] = rectify ? relu(value) : value;
        }
      };
      int64_t p = first;
      for (; p + kTogether <= last; p += kTogether)
        sum(p, std::integral_constant<int64_t, kTogether>{});
      for (; p < last; ++p) sum(p, std::integral_constant<int64_t, 1>{});
    });
  });
}

// maps[k] = ReLU(sum over channels of f(A, g, w_c)) of one image, channels_last, in parallel over
// shares of the positions
template <class T, class F, class Function>
void maps_channels_last(
    const Features<T>& a, const Features<T>& g, int64_t image, const Extents& extents,
    const F* weights, int64_t class_stride, const Function& f, bool rectify, F* maps) {
  constexpr int64_t kSharePositions = 16;
  const auto [images, classes, channels, positions] = extents;
  parallel_tasks(
      (positions + kSharePositions - 1) / kSharePositions, kSharePositions * channels * classes,
      [&, classes = classes, channels = channels, positions = positions](int64_t share) {
        for (int64_t k = 0; k < classes; ++k)
          map_channels_last(
              a.at(image, 0, 0), g.at(image, k, 0), a.strides, g.strides, share * kSharePositions,
              std::min((share + 1) * kSharePositions, positions), channels,
              weights + k * class_stride, f, rectify, maps + k * positions);
      });
}

}  // namespace fastcam::cpu
