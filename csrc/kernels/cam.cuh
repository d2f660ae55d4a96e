// From activations and gradients to maps, each read once: kernels/plan.h says how.
#pragma once

#include "kernels/block.cuh"
#include "kernels/device.cuh"
#include "kernels/layout.h"
#include "kernels/methods.h"
#include "kernels/plan.h"
#include "kernels/scalar.h"

namespace fastcam {

// M = sum_k w_k A^k with weights that are given: (N, K, C)
template <class F>
struct GivenWeights {
  const F* weights;
  int64_t image_stride, class_stride;
};

template <class Method>
inline constexpr bool has_given_weights = false;
template <class F>
inline constexpr bool has_given_weights<GivenWeights<F>> = true;

template <class T, class Method>
struct CamArguments {
  Features<T> activations, gradients;
  Extents extents;
  Method method;
  CamPlan plan;
  bool rectify;             // through ReLU, where no second launch follows
  arithmetic_t<T>* result;  // maps (N, K, positions); for a second launch (N, slices, K, positions)
};

template <class T, class Method>
FASTCAM_HOST_DEVICE constexpr CamNeeds cam_needs(bool channels_last) {
  return {
      sizeof(T), sizeof(arithmetic_t<T>), channels_last, !has_given_weights<Method>,
      has_channel_weights<Method>};
}

// What one block does. kAcross: channels are contiguous in memory, and in the staged tiles.
template <bool kAcross, class T, class Method>
class CamBlock {
  using F = arithmetic_t<T>;
  using Vector = Pack<T, kVector<T>>;
  static constexpr bool kGiven = has_given_weights<Method>;
  static constexpr bool kWeighted = kGiven || has_channel_weights<Method>;

 public:
  __device__ CamBlock(const CamArguments<T, Method>& arguments, int64_t block)
      : o_(arguments),
        e_(arguments.extents),
        tile_(static_cast<int>(o_.plan.tile)),
        stages_(static_cast<int>(o_.plan.stages)),
        memory_(needs(), tile_, stages_, o_.plan.classes, o_.plan.window),
        slice_(block % o_.plan.slices) {
    block /= o_.plan.slices;
    first_position_ = block % o_.plan.windows(e_) * o_.plan.window;
    block /= o_.plan.windows(e_);
    image_ = block / o_.plan.class_tiles(e_);
    first_class_ = block % o_.plan.class_tiles(e_) * o_.plan.classes;
    const int64_t behind = e_.positions - first_position_;
    positions_ = static_cast<int>(behind < o_.plan.window ? behind : o_.plan.window);
    pitch_ = static_cast<int>(tile_pitch(needs(), tile_, o_.plan.window));
    groups_ = static_cast<int>(channel_groups(o_.plan.window));
    const int64_t left = e_.classes - first_class_;
    classes_ = static_cast<int>(left < o_.plan.classes ? left : o_.plan.classes);
    const int64_t tiles = (e_.channels + tile_ - 1) / tile_;
    first_tile_ = tiles * slice_ / o_.plan.slices;
    steps_ = static_cast<int>(tiles * (slice_ + 1) / o_.plan.slices - first_tile_) * classes_;
  }

  // The slice's part of every class's map, (classes, groups, positions), in shared memory
  __device__ void run() {
    for (int i = thread_number(); i < classes_ * groups_ * positions_; i += kThreads)
      accumulators()[i] = 0;
    __syncthreads();
    int staged = 0;
    for (int step = 0; step < steps_; ++step) {
      for (; staged < steps_ && staged < step + stages_; ++staged) stage(staged);
      if (staged > step + 1) {
        wait_for_copies<1>();
      } else {
        wait_for_copies<0>();
      }
      __syncthreads();
      if constexpr (kWeighted) find_weights(step);
      add_tile(step);
      __syncthreads();
    }
  }

  // This block's map, its groups of channels added up
  __device__ void add_groups() {
    for (int i = thread_number(); i < classes_ * positions_; i += kThreads) {
      const int k = i / positions_, p = i - k * positions_;
      const F* map = accumulators() + k * groups_ * positions_ + p;
      F sum = 0;
      for (int group = 0; group < groups_; ++group) sum += map[group * positions_];
      const bool rectify = o_.rectify && o_.plan.slices == 1;
      const int64_t map_number = (image_ * o_.plan.slices + slice_) * e_.classes + first_class_ + k;
      o_.result[map_number * e_.positions + first_position_ + p] = rectify ? relu(sum) : sum;
    }
  }

 private:
  static constexpr bool kStagesGradients = !kGiven;

  __device__ static constexpr CamNeeds needs() { return cam_needs<T, Method>(kAcross); }
  template <class Value>
  __device__ Value* at(int64_t offset) const {
    return reinterpret_cast<Value*>(shared_memory() + offset);
  }
  __device__ F* accumulators() const { return at<F>(memory_.accumulators); }
  __device__ F* totals() const { return at<F>(memory_.totals); }
  __device__ F* weights() const { return at<F>(memory_.weights); }

  // Steps are (tile, class): the tile's activations are staged with its first class.
  __device__ int64_t first_channel(int step) const {
    return (first_tile_ + step / classes_) * tile_;
  }
  __device__ int channels(int step) const {
    const int64_t left = e_.channels - first_channel(step);
    return static_cast<int>(left < tile_ ? left : tile_);
  }
  __device__ T* staged_activations(int step) const {
    return at<T>(step / classes_ % stages_ * memory_.tile_bytes);
  }
  __device__ T* staged_gradients(int step) const {
    return at<T>(memory_.gradients + step % stages_ * memory_.tile_bytes);
  }

  // ---- from device memory to shared memory ----

  __device__ void stage(int step) const {
    const bool first_class = step % classes_ == 0;
#pragma unroll 1  // one copy of the code is enough
    for (int input = first_class ? 0 : 1; input < (kStagesGradients ? 2 : 1); ++input) {
      const Features<T>& x = input == 0 ? o_.activations : o_.gradients;
      const int64_t klass = input == 0 ? 0 : first_class_ + step % classes_;
      const T* source =
          x.at(image_, klass, first_channel(step)) + first_position_ * x.strides.position;
      T* tile = input == 0 ? staged_activations(step) : staged_gradients(step);
      stage_tile(tile, source, x.strides, channels(step));
    }
    commit_copies();
  }

  // One tile, all threads together: 16 bytes at a time where its rows are contiguous and aligned.
  __device__ void stage_tile(T* tile, const T* source, const Strides& s, int channels) const {
    const int64_t along = kAcross ? s.channel : s.position,
                  between = kAcross ? s.position : s.channel;
    int rows = kAcross ? positions_ : channels, length = kAcross ? tile_ : positions_;
    int valid = kAcross ? channels : positions_;  // of a row; what is missing is 0
    if (!kAcross && along == 1 && between == length && pitch_ == length) {  // one long row
      length = valid = rows * length;
      rows = 1;
    }
    const bool in_order = along == 1 && valid == length;
    const bool rows_aligned =
        rows == 1 || (between * sizeof(T) % 16 == 0 && pitch_ % kVector<T> == 0);
    int copied = 0;  // of each row
    if (in_order && rows_aligned && aligned(source)) {
      const int vectors = length / kVector<T>;
      for (int i = thread_number(); i < rows * vectors; i += kThreads) {
        const int row = rows == 1 ? 0 : i / vectors, first = (i - row * vectors) * kVector<T>;
        copy_async(tile + row * pitch_ + first, source + row * between + first);
      }
      copied = vectors * kVector<T>;
    }
    const int left = length - copied;
    for (int i = thread_number(); i < rows * left; i += kThreads) {
      const int row = rows == 1 ? 0 : i / left, at = copied + i - row * left;
      tile[row * pitch_ + at] = at < valid ? source[row * between + at * along] : T{};
    }
  }

  // ---- the channels' weights ----

  __device__ void find_weights(int step) const {
    const int c = thread_number();
    if constexpr (kGiven) {
      const int64_t row = image_ * o_.method.image_stride +
                          (first_class_ + step % classes_) * o_.method.class_stride;
      if (c < tile_)
        weights()[c] = c < channels(step) ? o_.method.weights[row + first_channel(step) + c] : F(0);
      __syncthreads();
    } else {
      const T *a = staged_activations(step), *g = staged_gradients(step);
      const int count = channels(step), used = kAcross ? tile_ : count;
      if constexpr (Method::kUsesActivations) {
        if (step % classes_ == 0) {
          sum_positions(
              a, a, count, [&](int, F activation, F) { return o_.method.summand(activation); });
          if (c < used) totals()[c] = folded_sum(c);
          __syncthreads();
        }
      }
      sum_positions(
          Method::kUsesActivations ? a : g, g, count, [&](int k, F activation, F gradient) {
            return o_.method.term(
                activation, gradient, Method::kTermUsesTotal ? totals()[k] : F(0));
          });
      if (c < used)
        weights()[c] = o_.method.weight(
            folded_sum(c), Method::kUsesActivations ? totals()[c] : F(0), e_.positions);
      __syncthreads();
    }
  }

  // Rows of threads that share a channel whose positions are contiguous
  __device__ int rows_per_channel() const { return tile_ < kRows ? kRows / tile_ : 1; }

  // Partial sums over positions of term(channel, A, g), for folded_sum.
  template <class Term>
  __device__ void sum_positions(const T* a, const T* g, int channels, const Term& term) const {
    F* partial = at<F>(memory_.partial_sums);
    const int row = threadIdx.y, lane = threadIdx.x;
    if (kAcross) {
      const int vectors = tile_ / kVector<T>, v = thread_number() % vectors;
      F sums[kVector<T>] = {};
      for (int p = thread_number() / vectors; p < positions_; p += kThreads / vectors) {
        const Vector av = vector_at(a, p, v), gv = vector_at(g, p, v);
#pragma unroll
        for (int j = 0; j < kVector<T>; ++j)
          sums[j] += term(v * kVector<T> + j, load(av.values[j]), load(gv.values[j]));
      }
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) {
        for (int offset = vectors; offset < kLanes; offset *= 2)
          sums[j] += __shfl_xor_sync(0xffffffffu, sums[j], offset);
        if (lane < vectors) partial[row * tile_ + v * kVector<T> + j] = sums[j];
      }
    } else {
      const int rows = rows_per_channel(), first = row % rows * kLanes + lane;
      for (int c = row / rows; c < channels; c += kRows / rows) {
        const F sum = sum_lanes(strided_sum<F>(first, rows * kLanes, positions_, [&](int64_t p) {
          return term(c, load(a[c * pitch_ + p]), load(g[c * pitch_ + p]));
        }));
        if (lane == 0) partial[c * rows + row % rows] = sum;
      }
    }
    __syncthreads();
  }

  __device__ F folded_sum(int c) const {
    const F* partial = at<F>(memory_.partial_sums);
    F sum = 0;
    if (kAcross) {
      for (int row = 0; row < kRows; ++row) sum += partial[row * tile_ + c];
    } else {
      for (int row = 0; row < rows_per_channel(); ++row)
        sum += partial[c * rows_per_channel() + row];
    }
    return sum;
  }

  __device__ const Vector& vector_at(const T* tile, int p, int v) const {
    return *reinterpret_cast<const Vector*>(tile + p * pitch_ + v * kVector<T>);
  }

  // ---- the map ----

  // A thread takes a position and, where there are more threads, every groups-th channel.
  __device__ void add_tile(int step) const {
    const T *a = staged_activations(step), *g = staged_gradients(step);
    const int count = channels(step);
    F* map = accumulators() + step % classes_ * groups_ * positions_;
    for (int i = thread_number(); i < groups_ * positions_; i += kThreads) {
      const int group = groups_ == 1 ? 0 : i / positions_, p = i - group * positions_;
      F sum = 0;
      if (kAcross) {
        for (int v = group; v < tile_ / kVector<T>; v += groups_) {
          const Vector av = vector_at(a, p, v), gv = vector_at(kWeighted ? a : g, p, v);
#pragma unroll
          for (int j = 0; j < kVector<T>; ++j)
            sum += pixel(v * kVector<T> + j, load(av.values[j]), load(gv.values[j]));
        }
      } else {
        for (int c = group; c < count; c += groups_)
          sum += pixel(c, load(a[c * pitch_ + p]), load((kWeighted ? a : g)[c * pitch_ + p]));
      }
      map[i] += sum;
    }
  }

  __device__ F pixel(int c, F activation, F gradient) const {
    if constexpr (kWeighted) {
      return weights()[c] * activation;
    } else {
      return o_.method.pixel(activation, gradient);
    }
  }

  const CamArguments<T, Method>& o_;
  const Extents& e_;
  int tile_, stages_, positions_, pitch_, groups_, classes_, steps_;
  CamMemory memory_;
  int64_t slice_, image_, first_class_, first_position_, first_tile_;
};

template <bool kAcross, class T, class Method>
__global__ void __launch_bounds__(kThreads, kResident)
    cam_kernel(CamArguments<T, Method> arguments) {
  CamBlock<kAcross, T, Method> block(arguments, blockIdx.x);
  block.run();
  block.add_groups();
}

// maps[n, i] = ReLU(sum over slices of partial[n, slice, i]); `size` values a map of all classes. A block
// takes kLanes values, its rows of threads share the slices.
template <class F>
__global__ void __launch_bounds__(kThreads) fold_slices_kernel(
    const F* partial, int64_t slices, int64_t size, int64_t total, bool rectify, F* maps) {
  const int64_t i = int64_t{blockIdx.x} * kLanes + threadIdx.x;
  const bool inside = i < total;
  const int64_t image = inside ? i / size : 0;
  const F* values = partial + image * slices * size + (inside ? i - image * size : 0);
  const F sum = sum_rows(strided_sum<F>(threadIdx.y, kRows, slices, [&](int64_t slice) {
    return values[slice * size];
  }));
  if (inside && threadIdx.y == 0) maps[i] = rectify ? relu(sum) : sum;
}

}  // namespace fastcam
