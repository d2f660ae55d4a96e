// Enlarged maps, plain and normalized, and their product with guided gradients.
#include <atomic>

#include "pictures.h"

using namespace fastcam;

namespace {

void test_divider() {
  for (int64_t i = 0; i < 20000; ++i) {
    const int64_t d = i < 300 ? i + 1 : 1 + static_cast<int64_t>(generator() % INT32_MAX);
    const Divider divider(d);
    const int64_t multiple = INT32_MAX / d * d;
    for (int64_t n :
         {int64_t{0}, d - 1, d, multiple - 1, multiple, int64_t{INT32_MAX},
          static_cast<int64_t>(generator() % INT32_MAX)})
      expect(
          divider.quotient(static_cast<uint32_t>(n)) == n / d,
          std::to_string(n) + " / " + std::to_string(d));
  }
}

void test_long_quotient() {
  for (int i = 0; i < 20000; ++i) {
    const int64_t d = 1 + int64_t{generator()} % INT32_MAX, result = generator() / 2;
    for (int64_t n : {result * d, result * d + d - 1})
      expect(long_quotient(n, d, 1.0 / d) == result, std::to_string(n) + " / " + std::to_string(d));
  }
}

// A sampler says without a division what sample_at and bound_sample say with one.
void test_sampler() {
  const auto same = [](int64_t in, int64_t out) {
    const Sampler<double> sampler(in, out);
    const std::string what = "sampler " + std::to_string(in) + " to " + std::to_string(out);
    const auto expect_sample = [&](int64_t i) {
      const Sample<double> want = sample_at<double>(i, in, out);
      const Taps<double> got = sampler.sample(static_cast<int>(i));
      expect(got.near() == want.near && got.far() == want.far, what + ": taps");
      expect_near(got.fraction, want.fraction, 1e-15, what + ": fraction");
    };
    for (int64_t i = 0; i < std::min<int64_t>(out, 300); ++i) expect_sample(i);
    expect_sample(out - 1);
    expect(sampler.count<true>() == bound_count(in, out), what + ": bounds");
    for (int64_t j = 0; j < std::min<int64_t>(bound_count(in, out), 300); ++j)
      expect(
          sampler.index<true>(static_cast<int>(j)) == bound_sample(j, in, out), what + ": bound");
  };
  for (int64_t in = 1; in < 24; ++in)
    for (int64_t out = 1; out < 80; ++out) same(in, out);
  for (auto [in, out] :
       {std::pair<int64_t, int64_t>{7, 224},
        {14, 224},
        {112, 1920},
        {40000, 30001},
        {3, 2000000000},
        {70001, 1000003},
        {1000003, 70001}})
    same(in, out);
}

// The spans of a map's last rows, behind the first 2^31 positions
void test_far_positions() {
  const float value = 1;
  const Enlargement<float> e({1, 1, 1}, {3, 40000, 50001});
  const EnlargedMap<float> map{&value, false, e};
  constexpr int kBeside = 196;
  const Shares shares(e, 1000);
  expect(shares.blocks == 1000 * kBeside, "blocks beside and below each other");
  // by the threads of a block, which nothing orders: columns of each row, and what is elsewhere
  std::vector<std::atomic<int>> seen(120000);
  std::atomic<int> elsewhere = 0;
  const auto count = [&](unsigned block) {
    const Share share(shares, e, block);
    elsewhere += share.map != 0;
    map.for_spans<false>(share.area, [&](const Span& span, const float (&)[kColumns]) {
      elsewhere += share.first + span.first != int64_t{span.row} * 50001 + span.column;
      seen[span.row] += span.count;
    });
  };
  for (unsigned block = shares.blocks - 2 * kBeside; block < unsigned(shares.blocks); ++block)
    emulator::run_grid(grid(1), [&] { count(block); });
  expect(elsewhere == 0, "a position behind the first 2^31");
  for (int row = 119760; row < 120000; ++row) expect(seen[row] == 50001, "every column of a row");
}

// No thread takes what another does, however many of a block are left over.
void test_spans() {
  const float value = 1;
  for (int width : {1, 9, 12, 40, 300}) {
    const Enlargement<float> e({1, 1, 1}, {2, 150, width});
    const EnlargedMap<float> map{&value, false, e};
    const Shares shares(e, 1);
    std::vector<std::atomic<int>> seen(300 * width);
    for (unsigned block = 0; block < unsigned(shares.blocks); ++block)
      emulator::run_grid(grid(1), [&] {
        const Share share(shares, e, block);
        map.for_spans<false>(share.area, [&](const Span& span, const float (&)[kColumns]) {
          for (int j = 0; j < span.count; ++j) ++seen[share.first + span.first + j];
        });
      });
    for (const auto& times : seen) expect(times == 1, "every position by one thread");
  }
}

template <class F>
void test_upsample(const SmallMaps<F>& maps, const Size& enlarged, bool unaligned, double eps) {
  const Enlargement<F> e(maps.size, enlarged);
  const int64_t count = maps.images * maps.classes, large = enlarged.positions();
  const Shares shares(e, 2);
  Buffer<F> plain(count * large, unaligned), normalized(count * large, unaligned);
  plain.fill(F(kNaN));
  normalized.fill(F(kNaN));
  emulator::launch(
      upsample_kernel<F>, grid(count * shares.blocks, maps.shared_bytes()), maps.source(), e,
      shares, false, F(0), plain.data());
  emulator::launch(
      upsample_kernel<F>, grid(count * shares.blocks, maps.shared_bytes()), maps.source(), e,
      shares, true, F(eps), normalized.data());
  for (int64_t number = 0; number < count; ++number) {
    const auto map = maps.map(number / maps.classes, number % maps.classes);
    const std::vector<double> want = enlarge(map, maps.size, enlarged);
    const Normalization normalize(want, eps);
    for (int64_t i = 0; i < large; ++i) {
      const double rounding = kRounding<F>;
      expect_near(plain[number * large + i], want[i], 4 * rounding, "upsample");
      expect_near(
          normalized[number * large + i], normalize(want[i]), rounding * normalize.scale,
          "upsample and normalize");
    }
  }
}

template <class T>
void test_product(
    const SmallMaps<arithmetic_t<T>>& maps, const Size& enlarged, int64_t channels,
    ChannelOrder order, ChannelOrder product_order, bool unaligned) {
  using F = arithmetic_t<T>;
  const Enlargement<F> e(maps.size, enlarged);
  const int64_t n_count = maps.images, k_count = maps.classes;
  const Shares shares(e, 2);
  Pictures<T> guided(n_count, k_count, channels, enlarged, order, unaligned);
  Pictures<T> product(n_count, k_count, channels, enlarged, product_order, unaligned);
  guided.buffer.fill_normal();
  product.buffer.fill(stored<T>(kNaN));
  const ChannelOrder found = channel_order(enlarged, guided.strides, channels);
  const bool same = found == channel_order(enlarged, product.strides, channels);
  emulator::launch(
      guided_product_kernel<T>, grid(n_count * k_count * shares.blocks, maps.shared_bytes()),
      maps.source(), guided.buffer.data(), e, shares, channels,
      same ? found : ChannelOrder::kScattered, guided.strides, product.strides, F(0),
      product.buffer.data());
  for (int64_t n = 0; n < n_count; ++n) {
    for (int64_t k = 0; k < k_count; ++k) {
      const std::vector<double> want = enlarge(maps.map(n, k), maps.size, enlarged);
      const Normalization normalize(want, 0);
      for (int64_t i = 0; i < enlarged.positions(); ++i) {
        const int64_t x = i % enlarged.width, row = i / enlarged.width;
        const int64_t y = row % enlarged.height, z = row / enlarged.height;
        for (int64_t c = 0; c < channels; ++c) {
          const double gradient = load(guided.buffer[guided.offset(n, k, c, z, y, x)]);
          const double result = normalize(want[i]) * gradient;
          expect_near(
              load(product.buffer[product.offset(n, k, c, z, y, x)]), result,
              storage_rounding<T>(result) + 2 * kRounding<F> * normalize.scale * std::abs(gradient),
              "guided product");
        }
      }
    }
  }
}

struct Case {
  Size size, enlarged;
};

constexpr Case kCases[] = {
    {{1, 7, 7}, {1, 30, 29}},   // a picture
    {{1, 5, 4}, {1, 3, 9}},     // smaller and larger
    {{1, 1, 6}, {1, 1, 50}},    // a line
    {{3, 4, 2}, {7, 6, 5}},     // a volume
    {{1, 1, 1}, {1, 4, 3}},     // one value
    {{1, 6, 5}, {1, 6, 5}},     // as it is
    {{2, 3, 40}, {3, 20, 41}},  // several packs a thread
};

template <class F>
void test_maps() {
  for (const Case& test : kCases) {
    for (bool staged : {false, true}) {
      test_upsample(SmallMaps<F>(2, 1, 1, false, staged, test.size), test.enlarged, !staged, 0.0);
      if (staged)
        for (int64_t slices : {3, 21})
          test_upsample(
              SmallMaps<F>(2, 2, slices, slices == 3, true, test.size), test.enlarged, true, 0.25);
    }
  }
  // with the block's static memory more than it gets unasked
  if (!kSanitized)
    for (const Size& size : {Size{1, 96, 128}, Size{1, 93, 132}})
      if (sizeof(F) == 4)
        test_upsample(SmallMaps<F>(1, 1, 1, false, true, size), {1, 50, 70}, true, 0.0);
  if (sizeof(F) == 8)
    test_upsample(SmallMaps<F>(1, 1, 1, false, true, {1, 64, 96}), {1, 20, 30}, true, 0.0);
  // more rows a block than threads
  test_upsample(SmallMaps<F>(1, 1, 1, false, true, {1, 5, 2}), {1, 600, 3}, true, 0.0);
  // coordinates beyond 32 bits
  test_upsample(SmallMaps<F>(1, 1, 1, false, false, {1, 1, 40000}), {1, 1, 30001}, false, 0.0);
}

template <class T>
void test_products() {
  using F = arithmetic_t<T>;
  constexpr ChannelOrder kPlanar = ChannelOrder::kPlanar;
  constexpr ChannelOrder kInterleaved = ChannelOrder::kInterleaved;
  constexpr ChannelOrder kScattered = ChannelOrder::kScattered;
  for (const Case& test : kCases) {
    for (bool unaligned : {false, true}) {
      const SmallMaps<F> maps(2, 2, 1, false, !unaligned, test.size);
      for (ChannelOrder order : {kPlanar, kInterleaved, kScattered})
        test_product<T>(maps, test.enlarged, 3, order, order, unaligned);
      if (kSanitized && test.size.positions() > 20) continue;
      test_product<T>(maps, test.enlarged, 3, kPlanar, kInterleaved, unaligned);
      test_product<T>(maps, test.enlarged, 3, kScattered, kPlanar, unaligned);
      test_product<T>(maps, test.enlarged, 2, kPlanar, kPlanar, unaligned);
      test_product<T>(maps, test.enlarged, 4, kInterleaved, kInterleaved, unaligned);
    }
  }
}

// A sample that rounding lifts past the extremes stays in [0, 1], and these become 0 and 1.
void test_normalized() {
  const auto normalized = [](const Range<float>& range, float value) {
    float values[kColumns];
    std::fill_n(values, kColumns, value);
    Normalizer<float>{range}(values);
    return values[3];
  };
  const Range<float> range{1, 2};  // low, range
  expect(normalized(range, 1 - 1e-6f) == 0, "below the minimum");
  expect(normalized(range, 3 + 1e-6f) == 1, "above the maximum");
  expect(normalized(range, 2.0f) == 0.5f, "between them");
  expect(std::isnan(normalized(range, NAN)), "NaN is kept");
  for (int i = 0; i < 2000; ++i) {
    const float low = static_cast<float>(normal()),
                high = low + std::abs(static_cast<float>(normal()));
    const Range<float> any{low, high - low};
    expect(normalized(any, low) == 0, "the minimum becomes 0");
    expect(normalized(any, high) == 1, "the maximum becomes 1");
  }
  for (float tiny : {1e-38f, 1e-40f, 1e-45f, 2e38f}) {
    expect(normalized({0, tiny}, tiny) == 1, "the maximum of a range at the end of float32");
    expect_near(normalized({0, tiny}, tiny / 2), double(tiny / 2) / tiny, 1e-7, "half of it");
  }
  expect(normalized({3, 0}, 3) == 0, "a constant map becomes 0");
  expect(std::isnan(normalized({NAN, NAN}, 3)), "a map with NaN becomes NaN");
}

// Two channels of a picture that has three are not taken for a whole picture.
void test_channel_order() {
  const Size size{1, 4, 5};
  const VolumeStrides interleaved{60, 60, 1, 60, 15, 3};
  expect(channel_order(size, interleaved, 3) == ChannelOrder::kInterleaved, "three channels");
  expect(channel_order(size, interleaved, 2) == ChannelOrder::kScattered, "two of three channels");
}

}  // namespace

int main() {
  test_normalized();
  test_channel_order();
  test_divider();
  test_long_quotient();
  test_sampler();
  test_far_positions();
  test_spans();
  test_maps<float>();
  test_maps<double>();
  for_types([](auto element) { test_products<decltype(element)>(); });
  return report();
}
