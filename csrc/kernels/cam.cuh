// From activations and gradients to maps, each read once: kernels/plan.h says how.
#pragma once

#include "kernels/block.cuh"
#include "kernels/device.cuh"
#include "kernels/layout.h"
#include "kernels/methods.h"
#include "kernels/plan.h"
#include "kernels/scalar.h"

namespace fastcam {

// How the rows of staged tiles lie in device memory: a row a position (channels_last) or a channel
template <class T>
struct CamRows {
  const T* data;
  int64_t along, between;  // strides: in a row, and to the next row
  int64_t image, klass, tile, window,
      slice;            // to the next of these; slice: of plan.slice_tiles tiles
  int64_t copy_stride;  // to the row that a thread copies next
  bool joined;          // all rows of a tile are one
  bool packed;          // they come 16 bytes at a time, where they are aligned

  CamRows() = default;
  CamRows(const Features<T>& x, bool channels_last, const Extents& e, const CamPlan& plan) {
    const Strides& s = x.strides;
    data = x.data;
    along = channels_last ? s.channel : s.position;
    between = channels_last ? s.position : s.channel;
    image = s.image;
    klass = s.klass;
    tile = plan.tile * s.channel;
    window = plan.window * s.position;
    slice = plan.slice_tiles * tile;
    copy_stride = (channels_last ? plan.teams : kWarps) * between;
    joined = !channels_last && along == 1 && between == e.positions && plan.windows == 1;
    packed = along == 1 && (joined || (between % kVector<T> == 0 && plan.pitch % kVector<T> == 0));
  }
};

// What a launch writes
enum class CamOutput {
  kMaps,  // maps (N, K, positions); partial maps (N, slices, K, positions) of several slices
  kRectifiedMaps,  // the same, and through ReLU if there is one slice
  kWeights,        // weights (N, K, C) of a channel-weight method, and no maps
};

template <class T, class Method>
struct CamArguments {
  CamRows<T> activations, gradients;
  Extents extents;
  Method method;
  CamPlan plan;
  bool rectify;
  arithmetic_t<T>* result;
  bool weights_only;

  CamArguments(
      const Features<T>& a, const Features<T>& g, bool channels_last, const Extents& e,
      const Method& method, const CamPlan& plan, CamOutput output, arithmetic_t<T>* result)
      : activations(a, channels_last, e, plan),
        gradients(g, channels_last, e, plan),
        extents(e),
        method(method),
        plan(plan),
        rectify(output == CamOutput::kRectifiedMaps),
        result(result),
        weights_only(output == CamOutput::kWeights) {}
};

template <class T, class Method>
FASTCAM_HOST_DEVICE constexpr CamNeeds cam_needs(bool channels_last) {
  return {
      sizeof(T), sizeof(arithmetic_t<T>), channels_last, !has_given_weights<Method>,
      has_channel_weights<Method>};
}

// What one block does. kChannelsLast: channels are next to each other in device memory and in the staged tiles.
template <bool kChannelsLast, class T, class Method>
class CamBlock {
  using F = arithmetic_t<T>;
  static constexpr bool kGiven = has_given_weights<Method>;
  static constexpr bool kWeighted = kGiven || has_channel_weights<Method>;
  static constexpr bool kReadsActivations = uses_activations<Method>;

 public:
  __device__ CamBlock(const CamArguments<T, Method>& arguments, unsigned block)
      : o_(arguments), e_(arguments.extents), plan_(arguments.plan) {
    const auto take = [&block](int count) {
      if (count == 1) return 0;
      const unsigned whole = block / count, number = block - whole * count;
      block = whole;
      return static_cast<int>(number);
    };
    slice_ = take(plan_.slices);
    const int window = take(plan_.windows), first_position = window * plan_.window;
    first_class_ = take(plan_.class_shares) * plan_.classes;
    image_ = static_cast<int>(block);
    positions_ = least(e_.positions - first_position, plan_.window);
    classes_ = least(e_.classes - first_class_, plan_.classes);
    // slices of as many tiles, but for the first ones, which take one more
    const int more = least(slice_, plan_.longer_slices);
    const int64_t first_channel = int64_t{plan_.tile} * (slice_ * plan_.slice_tiles + more);
    const int tiles = plan_.slice_tiles + (slice_ < plan_.longer_slices ? 1 : 0);
    channels_ = least(e_.channels - first_channel, int64_t{plan_.tile} * tiles);

    const int thread = thread_number(), group_size = positions_ / plan_.at_once;
    group_ = plan_.groups == 1 ? 0 : thread / group_size;
    in_group_ = thread - group_ * group_size;
    team_ = thread >> plan_.log_team;
    in_team_ = thread - team_ * plan_.team;

    vector_ = (in_team_ ^ swizzle(team_)) * kVector<T>;
    activations_ = first_copy(o_.activations, window, more);
    gradients_of_tile_ = first_copy(o_.gradients, window, more) + first_class_ * o_.gradients.klass;
    gradients_ = gradients_of_tile_;
    weights_ = nullptr;
    if constexpr (kGiven) weights_ = o_.method.at(image_, first_class_) + first_channel;
    if (weights_only()) {
      result_ =
          o_.result + (int64_t{image_} * e_.classes + first_class_) * e_.channels + first_channel;
    } else {
      const int64_t map_number =
          (int64_t{image_} * plan_.slices + slice_) * e_.classes + first_class_;
      result_ = o_.result + map_number * e_.positions + first_position;
    }
  }

  // The slice's partial map of every class, (classes, groups, positions), in shared memory
  __device__ void run() {
    for (int i = thread_number(); i < classes_ * plan_.groups * positions_; i += kThreads)
      accumulators()[i] = 0;
    __syncthreads();
    Step ahead{};  // the next one to be staged
    const auto stage_next = [&] {
      if (ahead.channel >= channels_) return;
      if (ahead.klass == 0 && (kReadsActivations || !weights_only())) {
        stage(o_.activations, activations_, channels(ahead), staged_activations(ahead));
        activations_ += o_.activations.tile;
      }
      if constexpr (!kGiven) {
        stage(o_.gradients, gradients_, channels(ahead), staged_gradients(ahead));
        gradients_ += o_.gradients.klass;
        if (ahead.klass + 1 == classes_) gradients_ = gradients_of_tile_ += o_.gradients.tile;
      }
      commit_copies();
      ahead.advance(classes_, plan_.tile);
    };
    for (int i = 0; i < plan_.stages; ++i) stage_next();
    for (Step step{}; step.channel < channels_; step.advance(classes_, plan_.tile)) {
      if (ahead.number > step.number + 1) {
        wait_for_copies<1>();
      } else {
        wait_for_copies<0>();
      }
      __syncthreads();
      if constexpr (kWeighted) find_weights(step);
      if (weights_only()) {
        const int c = thread_number();
        if (c < channels(step)) result_[step.klass * e_.channels + step.channel + c] = weights()[c];
      } else if (kAtOnce == 1 || plan_.at_once == 1) {
        add_tile<1>(step);
      } else {
        add_tile<kAtOnce>(step);
      }
      __syncthreads();
      stage_next();
    }
  }

  // This block's map, its groups of channels added up
  __device__ void add_groups() {
    if (weights_only()) return;
    const bool rectify = o_.rectify && plan_.slices == 1;
    for (int k = 0; k < classes_; ++k) {
      const F* map = accumulators() + k * plan_.groups * positions_;
      for (int p = thread_number(); p < positions_; p += kThreads) {
        F sum = 0;
        for (int group = 0; group < plan_.groups; ++group) sum += map[group * positions_ + p];
        result_[k * e_.positions + p] = rectify ? relu(sum) : sum;
      }
    }
  }

 private:
  // what plan_.at_once can be, beside 1
  static constexpr int kAtOnce = kChannelsLast || sizeof(T) != 2 ? 1 : 2;

  // A class of a tile, which begins at a channel of the slice: its activations are staged with the first.
  struct Step {
    int channel, klass, tile, number;

    __device__ void advance(int classes, int channels) {
      ++number;
      if (++klass < classes) return;
      klass = 0;
      ++tile;
      channel += channels;
    }
  };

  __device__ bool weights_only() const { return has_channel_weights<Method> && o_.weights_only; }

  __device__ static int least(int64_t a, int64_t b) { return static_cast<int>(a < b ? a : b); }

  template <class Value>
  __device__ Value* at(int offset) const {
    return reinterpret_cast<Value*>(shared_memory() + offset);
  }
  __device__ F* accumulators() const { return at<F>(plan_.memory.accumulators); }
  __device__ F* totals() const { return at<F>(plan_.memory.totals); }
  __device__ F* weights() const { return at<F>(plan_.memory.weights); }
  __device__ F* partial_sums() const { return at<F>(plan_.memory.partial_sums); }

  __device__ int channels(const Step& step) const {
    const int left = channels_ - step.channel;
    return left < plan_.tile ? left : plan_.tile;
  }
  // One stage or two: a number modulo that is a mask.
  __device__ T* staged_activations(const Step& step) const {
    return at<T>((step.tile & (plan_.stages - 1)) * plan_.memory.tile);
  }
  __device__ T* staged_gradients(const Step& step) const {
    return at<T>(plan_.memory.gradients + (step.number & (plan_.stages - 1)) * plan_.memory.tile);
  }

  // ---- from device memory to shared memory ----

  // Threads side by side copy a row, others the next ones.
  __device__ int copied_row() const {
    return kChannelsLast ? team_ : static_cast<int>(threadIdx.y);
  }
  __device__ int copied_vector() const {
    return kChannelsLast ? in_team_ : static_cast<int>(threadIdx.x);
  }

  // What this thread copies first of a tile
  __device__ int64_t offset(const CamRows<T>& rows) const {
    return kVector<T> * (rows.joined ? thread_number() : copied_vector()) +
           (rows.joined ? 0 : copied_row() * rows.between);
  }
  __device__ const T* first_copy(const CamRows<T>& rows, int window, int more) const {
    return rows.data + image_ * rows.image + window * rows.window + slice_ * rows.slice +
           more * rows.tile + offset(rows);
  }

  // In rows of vectors, those of one column lie in different banks: where vector v of row r lies, as v ^
  // swizzle(r). It is the same for rows that are a multiple of 8 apart.
  __device__ int swizzle(int row) const {
    if (!kChannelsLast) return 0;
    const int shift = plan_.log_team < 3 ? 3 - plan_.log_team : 0;
    return row >> shift & ((plan_.team < 8 ? plan_.team : 8) - 1);
  }

  // A tile of `count` channels, by all threads together, where this one begins to copy `from`. What is
  // missing of it is 0 (kChannelsLast).
  __device__ void stage(const CamRows<T>& rows, const T* from, int count, T* tile) const {
    if (!kChannelsLast && rows.joined && aligned(from)) {
      const int values = count * positions_;
      int i = thread_number() * kVector<T>;
      T* to = tile + i;
#pragma unroll 4
      for (; i + kVector<T> <= values; i += kThreads * kVector<T>) {
        copy_async(to, from);
        from += kThreads * kVector<T>;
        to += kThreads * kVector<T>;
      }
      for (; i < values; ++i) *to++ = *from++;  // by the thread that is at the last ones
      return;
    }
    const int height = kChannelsLast ? positions_ : count;
    const int length = kChannelsLast ? plan_.tile : positions_;
    const int valid = kChannelsLast ? count : positions_;
    int copied = 0;  // of each row
    if (rows.packed && valid == length && aligned(from)) {
      copied = length / kVector<T> * kVector<T>;
      const int first = copied_vector() * kVector<T>, apart = kChannelsLast ? plan_.teams : kWarps;
      T* to = tile + copied_row() * plan_.pitch + (kChannelsLast ? vector_ : first);
      const T* next = from;
#pragma unroll 2
      for (int row = copied_row(); row < height; row += apart) {
        if constexpr (kChannelsLast) {
          copy_async(to, next);
        } else {
          for (int i = 0; first + i < copied; i += kLanes * kVector<T>)
            copy_async(to + i, next + i);
        }
        next += rows.copy_stride;
        to += apart * plan_.pitch;
      }
    }
    if (copied == length) return;
    const T* source = from - offset(rows);
    for (int row = threadIdx.y; row < height; row += kWarps)
      for (int i = copied + threadIdx.x; i < length; i += kLanes)
        tile[row * plan_.pitch + (i ^ swizzle(row) * kVector<T>)] =
            i < valid ? source[row * rows.between + i * rows.along] : T{};
  }

  // ---- the channels' weights ----

  __device__ void find_weights(const Step& step) {
    if constexpr (kGiven) {
      const int c = thread_number();
      const F* given = weights_ + step.channel + step.klass * o_.method.class_stride;
      if (c < plan_.tile) weights()[c] = c < channels(step) ? given[c] : F(0);
    } else if constexpr (kChannelsLast) {
      find_weights_channels_last(step);
    } else if (kAtOnce == 1 || plan_.at_once == 1) {
      find_weights_contiguous<1>(step);
    } else {
      find_weights_contiguous<kAtOnce>(step);
    }
    __syncthreads();
  }

  // A thread sums up some positions of one channel, as many as its neighbours, in an odd number of reads: so
  // they read from different banks.
  template <int kCount>
  __device__ void find_weights_contiguous(const Step& step) {
    const int first = in_team_ * plan_.reads;
    const int left = team_ < channels(step) ? positions_ / kCount - first : 0;
    const int count = left < plan_.reads ? left : plan_.reads;
    const int offset = team_ * plan_.pitch + first * kCount;
    const T* const a = staged_activations(step) + offset;
    const T* const g = staged_gradients(step) + offset;
    const auto for_elements = [&](const auto& f) {
      const T *ai = kReadsActivations ? a : g, *gi = g;
      const auto take = [&](int i) {
        F av[kCount], gv[kCount];
        load_values(ai + i * kCount, av);
        load_values(gi + i * kCount, gv);
#pragma unroll
        for (int j = 0; j < kCount; ++j) f(av[j], gv[j]);
      };
      constexpr int kUnrolled = 4;
      int missing = count;
#pragma unroll 1
      for (; missing >= kUnrolled; missing -= kUnrolled) {
#pragma unroll
        for (int i = 0; i < kUnrolled; ++i) take(i);
        ai += kUnrolled * kCount;
        gi += kUnrolled * kCount;
      }
#pragma unroll 1
      for (; missing > 0; --missing) {
        take(0);
        ai += kCount;
        gi += kCount;
      }
    };
    F sum = 0;
    if constexpr (Method::kTermUsesTotal) {
      if (step.klass == 0) {
        F total = 0;
        for_elements([&](F activation, F) { total += o_.method.summand(activation); });
        total_ = sum_channel(total, 0);
      }
      with_term(o_.method, total_, [&](const auto& term) {
        for_elements([&](F activation, F gradient) { sum += term(activation, gradient); });
      });
    } else {
      F total = 0;
      for_elements([&](F activation, F gradient) {
        if constexpr (Method::kUsesActivations) total += o_.method.summand(activation);
        sum += o_.method.term(activation, gradient, F(0));
      });
      if constexpr (Method::kUsesActivations) total_ = sum_channel(total, 0);
    }
    const F whole = sum_channel(sum, kWarps);
    if (in_team_ == 0) weights()[team_] = o_.method.weight(whole, total_, e_.positions);
  }

  // A channel's sum in each thread that shares it; beyond a warp it goes through
  // partial_sums from `first` on.
  __device__ F sum_channel(F value, int first) const {
#pragma unroll
    for (int offset = 1; offset < kLanes; offset *= 2)
      if (offset < plan_.team) value += __shfl_xor_sync(0xffffffffu, value, offset);
    if (plan_.team <= kLanes) return value;
    F* partial = partial_sums() + first;
    if (threadIdx.x == 0) partial[threadIdx.y] = value;
    __syncthreads();
    const int warps = plan_.team / kLanes;
    F sum = 0;
    for (int i = 0; i < warps; ++i) sum += partial[team_ * warps + i];
    return sum;
  }

  // A thread sums up the channels of a vector, over some positions.
  __device__ void find_weights_channels_last(const Step& step) {
    const T *a = staged_activations(step), *g = staged_gradients(step);
    const int c = thread_number();
    const bool has_channel = c < plan_.tile;
    F total = 0;
    if constexpr (Method::kTermUsesTotal) {
      if (step.klass == 0) {
        sum_vectors(a, a, [&](int, F activation, F) { return o_.method.summand(activation); });
        if (has_channel) totals()[c] = total = folded_sum(c);
        quick_ = __syncthreads_and(allows_quick_terms(o_.method, total));
      } else if (has_channel) {
        total = totals()[c];
      }
      const auto totals_of_vector =
          *reinterpret_cast<const Pack<F, kVector<T>>*>(totals() + in_team_ * kVector<T>);
      with_terms(o_.method, totals_of_vector.values, quick_, [&](const auto& term) {
        sum_vectors(kReadsActivations ? a : g, g, term);
      });
    } else {
      if constexpr (Method::kUsesActivations) {
        sum_vectors(a, a, [&](int, F activation, F) { return o_.method.summand(activation); });
        if (has_channel) total = folded_sum(c);
        __syncthreads();
      }
      sum_vectors(Method::kUsesActivations ? a : g, g, [&](int, F activation, F gradient) {
        return o_.method.term(activation, gradient, F(0));
      });
    }
    if (has_channel) weights()[c] = o_.method.weight(folded_sum(c), total, e_.positions);
  }

  // Partial sums over positions of term(channel of the vector, A, g), for folded_sum.
  template <class Term>
  __device__ void sum_vectors(const T* a, const T* g, const Term& term) const {
    F sums[kVector<T>] = {};
    const int stride = plan_.teams * plan_.pitch;
    a += team_ * plan_.pitch + vector_;
    g += team_ * plan_.pitch + vector_;
#pragma unroll 2
    for (int p = team_; p < positions_; p += plan_.teams, a += stride, g += stride) {
      F av[kVector<T>], gv[kVector<T>];
      load_values(a, av);
      load_values(g, gv);
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) sums[j] += term(j, av[j], gv[j]);
    }
    scatter_sums<kLanes / 2>(
        sums, partial_sums() + threadIdx.y * plan_.tile + in_team_ * kVector<T>);
    __syncthreads();
  }

  // Adds up what the lanes of a warp that take one vector have of kCount channels and stores it. Two lanes
  // kOffset apart divide the channels between them, until each has one.
  template <int kOffset, int kCount>
  __device__ void scatter_sums(F (&sums)[kCount], F* sums_of_warp) const {
    if (kOffset < plan_.team) {
      // of lanes that came to have the same channel the first one stores it
      if ((threadIdx.x & (kLanes / kVector<T> - 1) & -plan_.team) == 0) {
#pragma unroll
        for (int j = 0; j < kCount; ++j) sums_of_warp[j] = sums[j];
      }
      return;
    }
    if constexpr (kOffset > 0) {
      constexpr int kKept = kCount > 1 ? kCount / 2 : 1;
      const bool upper = kCount > 1 && (threadIdx.x & kOffset) != 0;
      F kept[kKept];
#pragma unroll
      for (int j = 0; j < kKept; ++j) {
        const F other = upper ? sums[j] : sums[kCount - kKept + j];
        kept[j] = (upper ? sums[kCount - kKept + j] : sums[j]) +
                  __shfl_xor_sync(0xffffffffu, other, kOffset);
      }
      scatter_sums<kOffset / 2>(kept, sums_of_warp + (upper ? kKept : 0));
    }
  }

  __device__ F folded_sum(int c) const {
    F sum = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) sum += partial_sums()[warp * plan_.tile + c];
    return sum;
  }

  // ---- the map ----

  // A thread takes kCount positions and, where there are more threads, some of the channels.
  template <int kCount>
  __device__ void add_tile(const Step& step) const {
    if (group_ >= plan_.groups) return;
    auto* map = reinterpret_cast<Pack<F, kCount>*>(
                    accumulators() + (step.klass * plan_.groups + group_) * positions_) +
                in_group_;
    const T *a = staged_activations(step), *g = kWeighted ? a : staged_gradients(step);
    const int first = kChannelsLast ? 0 : group_ * plan_.group_channels;
    const int apart = kChannelsLast ? plan_.pitch : kCount;  // elements of neighbouring positions
    const int begin = first * plan_.pitch + in_group_ * apart;
    a += begin;
    g += begin;
    for (int i = in_group_; i < positions_ / kCount; i += kThreads) {
      // summed by tile, so that no sum is a chain over all channels
      Pack<F, kCount> sums{}, whole = *map;
      if constexpr (kChannelsLast) {
        add_vectors(a, g, sums.values[0]);
      } else {
        add_channels(a, g, first, channels(step) - first, sums.values);
      }
#pragma unroll
      for (int j = 0; j < kCount; ++j) whole.values[j] += sums.values[j];
      *map = whole;
      map += kThreads;
      a += kThreads * apart;
      g += kThreads * apart;
    }
  }

  // The group's vectors of one position
  __device__ void add_vectors(const T* a, const T* g, F& sum) const {
    const int swizzled = swizzle(in_group_);
#pragma unroll 2
    for (int v = group_; v < plan_.team; v += plan_.groups) {
      const int at = (v ^ swizzled) * kVector<T>;
      F av[kVector<T>], gv[kVector<T>];
      load_values(a + at, av);
      load_values(g + at, gv);
      with_weights<kVector<T>>(
          weights() + v * kVector<T>, [&](int j, F weight) { sum += pixel(weight, av[j], gv[j]); });
    }
  }

  // The group's channels, of which `left` begin at `first`, at kCount positions
  template <int kCount>
  __device__ void add_channels(
      const T* a, const T* g, int first, int left, F (&sums)[kCount]) const {
    const F* weight = weights() + first;
    const auto add = [&](int, F weight) {
      F av[kCount], gv[kCount];
      load_values(a, av);
      load_values(g, gv);
#pragma unroll
      for (int j = 0; j < kCount; ++j) sums[j] += pixel(weight, av[j], gv[j]);
      a += plan_.pitch;
      g += plan_.pitch;
    };
    int missing = left < plan_.group_channels ? left : plan_.group_channels;
#pragma unroll 1
    for (; missing >= 4; missing -= 4, weight += 4) with_weights<4>(weight, add);
#pragma unroll 1
    for (; missing > 0; --missing, ++weight) with_weights<1>(weight, add);
  }

  // add(j, weight) for kCount channels
  template <int kCount, class Add>
  __device__ void with_weights(const F* weights, const Add& add) const {
    Pack<F, kCount> weight{};
    if constexpr (kWeighted) weight = *reinterpret_cast<const Pack<F, kCount>*>(weights);
#pragma unroll
    for (int j = 0; j < kCount; ++j) add(j, weight.values[j]);
  }

  __device__ F pixel(F weight, F activation, F gradient) const {
    if constexpr (kWeighted) {
      return weight * activation;
    } else {
      return o_.method.pixel(activation, gradient);
    }
  }

  const CamArguments<T, Method>& o_;
  const Extents& e_;
  const CamPlan& plan_;
  int image_, slice_, first_class_;
  int positions_, channels_, classes_;  // that this block takes
  int group_, in_group_;  // takes positions in_group_, in_group_ + kThreads... of the map
  // takes positions of channel team_; (kChannelsLast) vector in_team_ of positions team_...
  int team_, in_team_;
  int vector_;  // and where that lies in a row
  // what this thread copies next
  const T *activations_, *gradients_, *gradients_of_tile_;
  const F* weights_;    // that are given
  F total_ = 0;         // of this thread's channel
  bool quick_ = false;  // whether all channels of the tile allow quick terms
  F* result_;
};

template <bool kChannelsLast, class T, class Method>
__global__ void __launch_bounds__(kThreads, kResident)
    cam_kernel(CamArguments<T, Method> arguments) {
  CamBlock<kChannelsLast, T, Method> block(arguments, blockIdx.x);
  block.run();
  block.add_groups();
}

// maps[n, i] = ReLU(sum over slices of partial[n, slice, i]); `size` values a map of all classes. A block
// takes kLanes values, its warps share the slices.
template <class F>
__global__ void __launch_bounds__(kThreads) fold_slices_kernel(
    const F* partial, int64_t slices, int64_t size, int64_t total, bool rectify, F* maps) {
  const int64_t i = int64_t{blockIdx.x} * kLanes + threadIdx.x;
  const bool inside = i < total;
  const int64_t image = inside ? i / size : 0;
  const F* values = partial + image * slices * size + (inside ? i - image * size : 0);
  const F sum = sum_warps(strided_sum<F>(threadIdx.y, kWarps, slices, [&](int64_t slice) {
    return values[slice * size];
  }));
  if (inside && threadIdx.y == 0) maps[i] = rectify ? relu(sum) : sum;
}

}  // namespace fastcam
