// What the kernels take of a GPU, counted from their PTX without one: instructions a value, the budget at
// which memory is the limit, and the time that the larger of both predicts. Prints Markdown.
//
// slots TEXT takes the cases whose name contains it alone, and shows where their slots are.
// slots --static KERNEL... prints what the table of costs makes of each kernel's text, for calibrate.py.
#include <cinttypes>

#include "launch.h"
#include "pictures.h"

#include "kernels/cam.cuh"
#include "kernels/channel_weights.cuh"
#include "kernels/guided_relu.cuh"
#include "kernels/normalize.cuh"
#include "kernels/overlay.cuh"

using namespace fastcam;

namespace {

// ---- the devices ----

constexpr int64_t kMultiprocessors = 132, kBlockMemory = 232448, kMultiprocessorMemory = 233472;
constexpr double kClock = 1.98e9, kSustained = 1.755e9, kLaunch = 2e-6;

struct Memory {
  const char* device;
  double bandwidth;  // bytes a second that a large copy moves
};
constexpr Memory kH100{"H100", 3.0e12}, kH200{"H200", 4.3e12};

// What a multiprocessor does in a clock, in warps; of shared memory in wavefronts of 128 bytes
struct Ceiling {
  const char* name;
  double rate;
};
constexpr Ceiling kCeilings[] = {
    {"issue", 4}, {"integer", 2}, {"special functions", 0.5}, {"doubles", 2}, {"shared memory", 1}};
constexpr int kCeilingCount = std::size(kCeilings);

// ---- a case: launches one after the other ----

struct Launched {
  double bytes, blocks;
  double work[kCeilingCount];  // of a block
};

struct Result {
  std::string name, plan;
  double values;       // that slots are divided by
  double value_bytes;  // that each must move
  std::vector<Launched> launches;

  double slots() const {
    double sum = 0;
    for (const Launched& launch : launches) sum += launch.blocks * launch.work[0];
    return sum * ptx::kWarp / values;
  }

  // Seconds of a launch; which ceiling they come from, or kCeilingCount for memory
  static double time(const Launched& launch, const Memory& memory, double clock, int& limit) {
    double longest = launch.bytes / memory.bandwidth;
    limit = kCeilingCount;
    const double turns = std::ceil(launch.blocks / kMultiprocessors);
    for (int i = 0; i < kCeilingCount; ++i) {
      const double seconds = turns * launch.work[i] / kCeilings[i].rate / clock;
      if (seconds > longest) longest = seconds, limit = i;
    }
    return longest;
  }

  double time(const Memory& memory, double clock) const {
    double sum = 0;
    int limit;
    for (const Launched& launch : launches) sum += time(launch, memory, clock, limit) + kLaunch;
    return sum;
  }

  // Of the longest launch
  std::string limit(const Memory& memory, double clock) const {
    double longest = -1;
    int limit = 0, of_launch;
    for (const Launched& launch : launches)
      if (const double seconds = time(launch, memory, clock, of_launch); seconds > longest)
        longest = seconds, limit = of_launch;
    return limit == kCeilingCount ? "memory" : kCeilings[limit].name;
  }
};

double budget(double value_bytes, const Memory& memory, double clock) {
  return value_bytes / memory.bandwidth * kMultiprocessors * kCeilings[0].rate * ptx::kWarp * clock;
}

// ---- running it ----

template <class... Parameters>
const ptx::Kernel& compiled(void (*kernel)(Parameters...)) {
  return ptx::kernel_named(ptx::name_of(reinterpret_cast<const void*>(kernel)));
}

template <class... Parameters>
Device device(void (*kernel)(Parameters...)) {
  return {kMultiprocessors, kBlockMemory - compiled(kernel).static_bytes, kMultiprocessorMemory};
}

std::string only;  // of the cases

bool wanted(const std::string& name) {
  return name.find(only) != std::string::npos;
}

// The instructions that take most of a kernel's slots
void print_hot(const ptx::Kernel& kernel, const ptx::Counts& counts) {
  constexpr size_t kLines = 60;
  std::vector<std::pair<double, int>> lines;
  double all = 0;
  for (size_t i = 0; i < counts.issued.size(); ++i) {
    const double slots = ptx::cost_of(kernel.code[i].opcode->name).slots * counts.issued[i];
    lines.push_back({slots, kernel.code[i].line});
    all += slots;
  }
  std::sort(lines.rbegin(), lines.rend());
  lines.resize(std::min(lines.size(), kLines));
  std::sort(lines.begin(), lines.end(), [](auto a, auto b) { return a.second < b.second; });
  std::printf("%s\n", kernel.name.c_str());
  for (const auto& [slots, line] : lines)
    std::printf("%6.2f %%  %d: %s\n", 100 * slots / all, line, kernel.line(line).c_str());
}

// The first `executed` blocks of `blocks`, which stand for all of them
template <class... Parameters>
Launched run(
    void (*kernel)(Parameters...), double bytes, int64_t blocks, int64_t executed,
    int64_t shared_bytes, std::type_identity_t<Parameters>... arguments) {
  static ptx::Machine machine(1);
  const ptx::Kernel& code = compiled(kernel);
  const ptx::Blocks shape{
      {static_cast<uint32_t>(blocks), 1, 1},
      {kLanes, kWarps, 1},
      static_cast<uint32_t>(shared_bytes),
      needs_opt_in};
  const ptx::Launch launch = ptx::prepared(code, shape, {{&arguments, sizeof(arguments)}...});
  executed = std::min(executed, blocks);
  const ptx::Counts counts = machine.run(launch, 0, static_cast<uint32_t>(executed));
  if (!only.empty()) print_hot(code, counts);
  Launched counted{bytes, static_cast<double>(blocks), {}};
  for (size_t i = 0; i < counts.issued.size(); ++i) {
    const ptx::Cost cost = ptx::cost_of(code.code[i].opcode->name);
    const double weights[] = {cost.slots, cost.integer, cost.special, cost.doubles};
    for (int j = 0; j < 4; ++j) counted.work[j] += weights[j] * counts.issued[i] / executed;
  }
  counted.work[4] = static_cast<double>(counts.wavefronts) / executed;
  return counted;
}

// ---- the cases ----

constexpr int64_t kImages = 64;
constexpr Extents kLayers[] = {
    {kImages, 1, 2048, 49},
    {kImages, 1, 1024, 196},
    {kImages, 1, 512, 784},
    {kImages, 1, 256, 3136}};

std::vector<Result> results;

template <class T>
const char* type_name() {
  if (std::is_same_v<T, uint8_t>) return "uint8";
  if (std::is_same_v<T, float16>) return "float16";
  return std::is_same_v<T, bfloat16> ? "bfloat16" : "float32";
}

std::string shape_name(const Extents& e) {
  const auto side = static_cast<int64_t>(std::lround(std::sqrt(e.positions)));
  const std::string extent = std::to_string(side);
  return std::to_string(e.channels) + "x" + extent + "x" + extent;
}

template <class T>
Array<T> activations(const Extents& e, Layout layout) {
  Array<T> a({1, 1, e.channels, e.positions}, layout);
  for (int64_t i = 0; i < a.buffer.size(); ++i)  // behind a ReLU
    if (load(a.buffer[i]) < 0) a.buffer[i] = T{};
  return a;
}

// All blocks of the first image run; the others do the same.
template <bool kChannelsLast, class T, class Method>
void count_cam(const std::string& method_name, const Extents& e, Method method) {
  using F = arithmetic_t<T>;
  constexpr bool kGiven = has_given_weights<Method>;
  const std::string layout_name = kChannelsLast ? " channels_last " : " ";
  const std::string name = method_name + " " + type_name<T>() + layout_name + shape_name(e);
  if (!wanted(name)) return;
  const Layout layout = kChannelsLast ? Layout::kChannelsLast : Layout::kContiguous;
  const Array<T> a = activations<T>(e, layout), g({1, 1, e.channels, e.positions}, layout);
  std::vector<F> weights(kImages * e.channels, F(0.5));
  if constexpr (kGiven) method = {weights.data(), e.channels, e.channels};
  const auto kernel = cam_kernel<kChannelsLast, T, Method>;
  const CamPlan plan = plan_cam(cam_needs<T, Method>(kChannelsLast), e, device(kernel));
  Result result{
      name,
      "",
      double(e.images * e.channels * e.positions),
      double(sizeof(T) * (kGiven ? 1 : 2)),
      {}};
  if (plan.tile == 0) return;
  std::vector<F> partial(kImages * plan.slices * e.positions);
  const CamArguments<T, Method> arguments(
      a.features(), kGiven ? a.features() : g.features(), kChannelsLast, e, method, plan,
      CamOutput::kRectifiedMaps, partial.data());
  const double partial_bytes = sizeof(F) * partial.size();
  result.launches.push_back(
      run(kernel, result.values * result.value_bytes + partial_bytes, plan.blocks(e),
          plan.blocks(e) / kImages, plan.memory.bytes, arguments));
  if (plan.slices > 1) {
    std::vector<F> maps(kImages * e.positions);
    const int64_t total = maps.size();
    result.launches.push_back(
        run(fold_slices_kernel<F>, partial_bytes + sizeof(F) * total, ceil_div(total, kLanes), 8, 0,
            partial.data(), int64_t{plan.slices}, e.positions, total, true, maps.data()));
  }
  result.plan = "tile " + std::to_string(plan.tile) + " x " + std::to_string(plan.stages) + ", " +
                std::to_string(plan.blocks(e)) + " blocks, " +
                std::to_string(plan.memory.bytes / 1024) + " KiB";
  results.push_back(result);
}

template <bool kChannelsLast, class T>
void count_cams() {
  using F = arithmetic_t<T>;
  for (const Extents& e : kLayers) {
    count_cam<kChannelsLast, T>("Grad-CAM++", e, GradCAMPlusPlus<F>{0});
    count_cam<kChannelsLast, T>("Grad-CAM", e, GradCAM<F>{});
    count_cam<kChannelsLast, T>("XGrad-CAM", e, XGradCAM<F>{0});
    count_cam<kChannelsLast, T>("LayerCAM", e, LayerCAM<F>{});
    count_cam<kChannelsLast, T>("weighted_sum", e, GivenWeights<F>{});
  }
}

// By the fused kernel, which stops at the weights
template <class T, class Method>
void count_channel_weights(
    const std::string& weights_name, const Extents& e, const Method& method) {
  using F = arithmetic_t<T>;
  const std::string name = weights_name + " " + type_name<T>() + " " + shape_name(e);
  if (!wanted(name)) return;
  constexpr int64_t kInputs = Method::kUsesActivations ? 2 : 1;
  const Array<T> a = activations<T>(e, Layout::kContiguous),
                 g({1, 1, e.channels, e.positions}, Layout::kContiguous);
  std::vector<F> weights(kImages * e.channels);
  const auto kernel = cam_kernel<false, T, Method>;
  const CamPlan plan = plan_cam(cam_needs<T, Method>(false), e, device(kernel));
  const CamArguments<T, Method> arguments(
      a.features(), g.features(), false, e, method, plan, CamOutput::kWeights, weights.data());
  const double values = e.images * e.channels * e.positions;
  results.push_back(
      {name,
       std::to_string(plan.blocks(e)) + " blocks",
       values,
       double(kInputs * sizeof(T)),
       {run(
           kernel, values * kInputs * sizeof(T) + sizeof(F) * weights.size(), plan.blocks(e),
           plan.blocks(e) / kImages, plan.memory.bytes, arguments)}});
}

void count_enlarging(int64_t side) {
  const std::string extent = std::to_string(side);
  const std::string name = "enlarging " + extent + "x" + extent + " to 224x224, normalized";
  if (!wanted(name)) return;
  const Size size{1, side, side}, enlarged{1, 224, 224};
  const int64_t large = enlarged.positions(), values = kImages * large;
  const SmallMaps<float> maps(1, 1, 1, false, true, size);
  std::vector<float> result(large);
  const Enlargement<float> e(size, enlarged);
  const Shares shares(
      e, shares_per_map(kImages, large, size.positions() / 8 + bound_count(size, enlarged)));
  results.push_back(
      {name,
       std::to_string(shares.blocks) + " shares",
       double(values),
       4,
       {run(
           upsample_kernel<float>, 4.0 * (values + kImages * size.positions()),
           kImages * int64_t{shares.blocks}, shares.blocks, maps.shared_bytes(), maps.source(), e,
           shares, true, 0.0f, result.data())}});
}

void count_overlay(ChannelOrder order) {
  const char* order_name = order == ChannelOrder::kPlanar ? "planar" : "interleaved";
  const std::string name = std::string("overlay of uint8 224x224, ") + order_name;
  if (!wanted(name)) return;
  const Size size{1, 7, 7}, enlarged{1, 224, 224};
  const int64_t large = enlarged.positions(), values = kImages * large;
  const SmallMaps<float> maps(1, 1, 1, false, true, size);
  Pictures<uint8_t> images(1, 1, 3, enlarged, order, false),
      pictures(1, 1, 3, enlarged, order, false);
  const std::vector<uint8_t> colormap(256 * 3);
  const std::vector<float> opacities(256);
  const Enlargement<float> e(size, enlarged);
  const Shares shares(e, shares_per_map(kImages, large, size.positions()));
  results.push_back(
      {name,
       std::to_string(shares.blocks) + " shares",
       double(values),
       6,
       {run(
           overlay_kernel<uint8_t>, 6.0 * values, kImages * int64_t{shares.blocks}, shares.blocks,
           maps.shared_bytes(), maps.source(), images.buffer.data(), colormap.data(),
           opacities.data(), Enlargement<float>(size, enlarged), shares, order, images.strides,
           pictures.strides, pictures.buffer.data())}});
}

template <class T>
void count_product() {
  const std::string name = std::string("guided_product ") + type_name<T>() + " 3x224x224";
  if (!wanted(name)) return;
  const Size size{1, 7, 7}, enlarged{1, 224, 224};
  const int64_t large = enlarged.positions(), values = kImages * large;
  const SmallMaps<float> maps(1, 1, 1, false, true, size);
  constexpr ChannelOrder kOrder = ChannelOrder::kPlanar;
  Pictures<T> guided(1, 1, 3, enlarged, kOrder, false), product(1, 1, 3, enlarged, kOrder, false);
  guided.buffer.fill_normal();
  const Enlargement<float> e(size, enlarged);
  const Shares shares(
      e, shares_per_map(kImages, large, size.positions() + bound_count(size, enlarged)));
  results.push_back(
      {name,
       std::to_string(shares.blocks) + " shares",
       double(values),
       6.0 * sizeof(T),
       {run(
           guided_product_kernel<T>, 6.0 * sizeof(T) * values, kImages * int64_t{shares.blocks},
           shares.blocks, maps.shared_bytes(), maps.source(), guided.buffer.data(), e, shares, 3,
           kOrder, guided.strides, product.strides, 0.0f, product.buffer.data())}});
}

template <class T>
void count_normalize(int64_t positions) {
  const std::string name = std::string("normalize ") + type_name<T>() + " of " +
                           std::to_string(positions) + " positions";
  if (!wanted(name)) return;
  const int64_t values = kImages * positions;
  const int64_t shares = normalize_shares(kImages, positions);
  const bool whole = shares == 1;
  Buffer<T> maps(values);
  maps.fill_normal();
  std::vector<float> result(values);
  std::vector<Extremes<float>> extremes(kImages * shares);
  Result found{name, std::to_string(shares) + " shares", double(values), double(sizeof(T) + 4), {}};
  if (!whole)
    found.launches.push_back(
        run(extremes_kernel<T>, double(sizeof(T)) * values, kImages * shares, shares, 0,
            maps.data(), positions, shares, extremes.data()));
  found.launches.push_back(
      run(normalize_kernel<T>, found.value_bytes * values, kImages * shares, shares, 0, maps.data(),
          positions, shares, whole ? nullptr : extremes.data(), 0.0f, result.data()));
  results.push_back(found);
}

template <class T>
void count_guided_relu() {
  const std::string name = std::string("guided_relu backward ") + type_name<T>() + " 64x512x28x28";
  if (!wanted(name)) return;
  const int64_t values = kImages * 512 * 784;
  const int64_t blocks = std::clamp<int64_t>(ceil_div(values, kVector<T> * kThreads), 1, 16384);
  constexpr int64_t kExecuted = 2;
  Buffer<T> input(values), gradient(values), result(values);
  for (int64_t i = 0; i < kExecuted * kVector<T> * kThreads; ++i)
    input[i] = stored<T>(normal()), gradient[i] = stored<T>(normal());
  results.push_back(
      {name,
       std::to_string(blocks) + " blocks",
       double(values),
       3.0 * sizeof(T),
       {run(
           guided_relu_backward_kernel<T>, 3.0 * sizeof(T) * values, blocks, kExecuted, 0,
           gradient.data(), input.data(), values, result.data())}});
}

// ---- the page ----

constexpr const char* kPage =
    R"(# What an H100 and an H200 should take: predictions, not measurements

`make slots` writes this page. The kernels that nvcc makes for sm_90 run on the CPU, on tests/ptx's machine, which
counts the instructions that each warp issues. `tests/ptx/costs.cpp` says what an instruction of PTX is in those of a
multiprocessor; held against ptxas over whole kernels, the sums are 3 %% low with a standard deviation of 7 %%
(`tests/ptx/calibrate.py`).

- **slots**: instructions of a thread for a pair of A and g; for an element of A in `weighted_sum` and `gap`; else for
  an output position, an overlaid or guided one with its three channels.
- **budget**: the slots at which the bytes that have to move take as long, at %.3g GHz; %d multiprocessors issue
  4 warps' instructions a clock. **over** the H200's budget, the instructions are the limit; `close`: only at
  %.4g GHz, which is assumed of a card under long load (NVIDIA rates the tensor cores at 1.83 GHz).
- **us**: the longer of bytes and instructions, launch by launch, and %.0f us a launch; blocks come in whole rounds of the
  multiprocessors. A large copy moves %.1f TB/s on an H100, %.1f TB/s on an H200.
- **limit**: what the longest launch waits for on an H200: memory, issue, or a narrower unit (integers: 2 warps a
  clock, doubles: 2, special functions and conversions: 1/2, shared memory: 128 bytes, conflicts of banks counted).

)";

void print() {
  if (only.empty())
    std::printf(
        kPage, kClock / 1e9, static_cast<int>(kMultiprocessors), kSustained / 1e9, kLaunch * 1e6,
        kH100.bandwidth / 1e12, kH200.bandwidth / 1e12);
  std::printf(
      "| of 64 images | plan | slots | budget H100 | budget H200 | | H200 us | at %.4g GHz | H100 "
      "us | at %.4g GHz | limit |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
      kSustained / 1e9, kSustained / 1e9);
  for (const Result& r : results) {
    const double slots = r.slots(), least = budget(r.value_bytes, kH200, kClock);
    const bool close = slots > budget(r.value_bytes, kH200, kSustained);
    std::printf(
        "| %s | %s | %.1f | %.0f | %.0f | %s | %.1f | %.1f | %.1f | %.1f | %s |\n", r.name.c_str(),
        r.plan.c_str(), slots, budget(r.value_bytes, kH100, kClock), least,
        slots > least ? "**over**"
        : close       ? "close"
                      : "",
        r.time(kH200, kClock) * 1e6, r.time(kH200, kSustained) * 1e6, r.time(kH100, kClock) * 1e6,
        r.time(kH100, kSustained) * 1e6, r.limit(kH200, kClock).c_str());
  }
}

// The table of costs, summed over the text of a kernel. A division of 64 bits calls code that is there once.
void print_static(int count, char** names) {
  for (int i = 0; i < count; ++i) {
    double sum = 0;
    for (const ptx::Instruction& instruction : ptx::kernel_named(names[i]).code) {
      const std::string& name = instruction.opcode->name;
      const bool calls =
          name == "div.s64" || name == "div.u64" || name == "rem.s64" || name == "rem.u64";
      sum += calls ? 12 : ptx::cost_of(name).slots;
    }
    std::printf("%s %.1f\n", names[i], sum);
  }
}

}  // namespace

int main(int count, char** arguments) try {
  if (count > 1 && std::string(arguments[1]) == "--static") {
    print_static(count - 2, arguments + 2);
    return 0;
  }
  if (count > 1) only = arguments[1];
  count_cams<false, float>();
  count_cams<true, float>();
  count_cams<false, float16>();
  count_cams<true, float16>();
  count_cams<false, bfloat16>();
  count_cams<true, bfloat16>();
  for (const Extents& e : kLayers) {
    count_channel_weights<float>("gap", e, GradCAM<float>{});
    count_channel_weights<float>("weights of Grad-CAM++", e, GradCAMPlusPlus<float>{0});
  }
  count_enlarging(7);
  count_enlarging(14);
  count_overlay(ChannelOrder::kPlanar);
  count_overlay(ChannelOrder::kInterleaved);
  count_product<float>();
  count_product<float16>();
  count_normalize<float>(196);
  count_normalize<float>(224 * 224);
  count_guided_relu<float>();
  count_guided_relu<float16>();
  count_guided_relu<bfloat16>();
  print();
  return 0;
} catch (const ptx::Fault& fault) {
  std::fprintf(stderr, "ptx: %s\n", fault.what());
  return 1;
}
