// Maps over pictures.
#include "pictures.h"

#include "kernels/overlay.cuh"

using namespace fastcam;

namespace {

double level_of(uint8_t value) {
  return value;
}

template <class T>
double level_of(T value) {
  const double unit = load(value);
  return unit > 0 ? std::min(unit, 1.0) * 255 : 0;  // NaN is black
}

template <class T>
T picture_value(int64_t i) {
  if constexpr (std::is_same_v<T, uint8_t>) {
    return static_cast<uint8_t>(i * 37);
  } else {
    return stored<T>(i % 29 == 0 ? kNaN : normal() * 0.4 + 0.5);  // also beyond 0 and 1
  }
}

template <class T>
void test_overlay(
    const Size& size, const Size& enlarged, ChannelOrder order, ChannelOrder result_order,
    bool unaligned, float alpha, int64_t most_blocks) {
  constexpr int64_t kImages = 2;
  SmallMaps<float> maps(kImages, 1, 1, false, !unaligned, size);
  for (float& value : maps.partial) value = value * 0.5f + 0.4f;
  maps.partial[0] = NAN;
  Pictures<T> images(kImages, 1, 3, enlarged, order, unaligned);
  Pictures<uint8_t> pictures(kImages, 1, 3, enlarged, result_order, unaligned);
  for (int64_t i = 0; i < images.buffer.size(); ++i) images.buffer[i] = picture_value<T>(i);
  std::vector<uint8_t> colormap(256 * 3);
  for (uint8_t& value : colormap) value = static_cast<uint8_t>(generator());

  const Enlargement<float> e(size, enlarged);
  const Shares shares(e, most_blocks);
  const ChannelOrder found = channel_order(enlarged, images.strides, 3);
  const bool same = found == channel_order(enlarged, pictures.strides, 3);
  emulator::launch(
      overlay_kernel<T>, grid(kImages * shares.blocks, maps.shared_bytes()), maps.source(),
      images.buffer.data(), colormap.data(), e, shares, same ? found : ChannelOrder::kScattered,
      images.strides, pictures.strides, alpha, pictures.buffer.data());

  for (int64_t n = 0; n < kImages; ++n) {
    const std::vector<double> heats = enlarge(maps.map(n, 0), size, enlarged);
    for (int64_t i = 0; i < enlarged.positions(); ++i) {
      const double heat = heats[i] > 0 ? std::min(heats[i], 1.0) : 0;  // NaN is cold
      for (int64_t c = 0; c < 3; ++c) {
        const int64_t y = i / enlarged.width, x = i % enlarged.width;
        const double image = level_of(images.buffer[images.offset(n, 0, c, 0, y, x)]);
        const int got = pictures.buffer[pictures.offset(n, 0, c, 0, y, x)];
        // either of two neighbours where rounding decides
        const auto agrees = [&](double nudge) {
          const auto index = static_cast<int64_t>(std::clamp(heat * 255 + 0.5 + nudge, 0.0, 255.0));
          const double blend = alpha * colormap[3 * index + c] + (1 - double{alpha}) * image;
          return std::abs(got - blend) <= 0.501;
        };
        expect(agrees(-1e-3) || agrees(1e-3), "overlay");
      }
    }
  }
}

template <class T>
void test_type() {
  constexpr ChannelOrder kPlanar = ChannelOrder::kPlanar;
  constexpr ChannelOrder kInterleaved = ChannelOrder::kInterleaved;
  constexpr ChannelOrder kScattered = ChannelOrder::kScattered;
  for (bool unaligned : {false, true}) {
    for (ChannelOrder order : {kPlanar, kInterleaved, kScattered}) {
      test_overlay<T>({1, 3, 2}, {1, 9, 7}, order, order, unaligned, 0.25f, 2);
      test_overlay<T>({1, 4, 5}, {1, 67, 63}, order, order, unaligned, 0.6f, 1);
      test_overlay<T>({1, 7, 7}, {1, 64, 64}, order, order, unaligned, 1.0f, 3);
    }
    test_overlay<T>({1, 3, 2}, {1, 9, 7}, kPlanar, kInterleaved, unaligned, 0.5f, 2);
    test_overlay<T>({1, 3, 2}, {1, 9, 7}, kScattered, kPlanar, unaligned, 0.0f, 2);
  }
}

}  // namespace

int main() {
  for_types([](auto element) { test_type<decltype(element)>(); });
  test_type<uint8_t>();
  // with the colors more shared memory than a block gets unasked
  constexpr ChannelOrder kPlanar = ChannelOrder::kPlanar;
  if (!kSanitized)
    test_overlay<uint8_t>({1, 110, 110}, {1, 50, 70}, kPlanar, kPlanar, false, 0.5f, 1);
  return report();
}
