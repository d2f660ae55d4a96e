// How a map is computed on a GPU: what one block takes, as a pure function of shapes and of the device.
//
// The channels of an image are dealt out to blocks as slices. A block stages its slice in shared memory,
// a tile of channels at a time, and looks at it there as often as the method asks, so activations and
// gradients come from device memory once. The slices' partial maps are added up by a second launch.
#pragma once

#include <cstdint>

#include "kernels/layout.h"

namespace fastcam {

// The thread block of every kernel
constexpr int kLanes = 32, kRows = 8, kThreads = kLanes * kRows;

// Blocks of the fused kernel that a multiprocessor has registers for
constexpr int kResident = 2;

struct Device {
  int64_t multiprocessors;
  int64_t block_memory;           // dynamic shared memory that one block may take, in bytes
  int64_t multiprocessor_memory;  // shared memory of a multiprocessor
};

// Whether a kernel has to ask for its shared memory before it is launched: static and dynamic together.
inline bool needs_opt_in(int64_t static_bytes, int64_t dynamic_bytes) {
  constexpr int64_t kUnasked = 48 * 1024;
  return static_bytes + dynamic_bytes > kUnasked;
}

struct CamPlan {
  int64_t tile;     // channels staged at once, a power of two; 0: a tile does not fit
  int64_t stages;   // tiles held: with 2 the next one is on its way while one is used
  int64_t window;   // positions that a block takes
  int64_t classes;  // classes that a block takes
  int64_t slices;   // blocks an image, tile of classes and window
  int64_t shared_bytes;

  FASTCAM_HOST_DEVICE int64_t class_tiles(const Extents& e) const {
    return (e.classes + classes - 1) / classes;
  }
  FASTCAM_HOST_DEVICE int64_t windows(const Extents& e) const {
    return (e.positions + window - 1) / window;
  }
  FASTCAM_HOST_DEVICE int64_t blocks(const Extents& e) const {
    return e.images * class_tiles(e) * windows(e) * slices;
  }
};

// What a kernel is instantiated for.
struct CamNeeds {
  int64_t element, arithmetic;  // bytes
  bool channels_last;           // channels are contiguous in memory
  bool gradients;               // gradients are staged beside the activations
  bool whole_channels;          // weights are sums over all positions of a channel
};

// Threads in a group share the positions of a map, and groups share the channels of a tile.
FASTCAM_HOST_DEVICE int64_t channel_groups(int64_t positions) {
  return positions < kThreads ? kThreads / positions : 1;
}

// Elements between the rows of a staged tile: a row a position for channels_last, an odd number of
// 16 bytes apart so that rows start in different banks; else a row a channel.
FASTCAM_HOST_DEVICE int64_t tile_pitch(CamNeeds needs, int64_t tile, int64_t positions) {
  if (!needs.channels_last) return positions;
  const int64_t vectors = tile * needs.element / 16;
  return (vectors | 1) * 16 / needs.element;
}

// Where what lies in a block's shared memory, in bytes.
struct CamMemory {
  int32_t tile_bytes;    // of the staged activations or gradients
  int32_t gradients;     // (stages, tile), behind the activations (stages, tile)
  int32_t accumulators;  // (classes, groups, positions)
  int32_t totals;        // (tile): the sums of the activations
  int32_t weights;       // (tile)
  int32_t partial_sums;  // (rows of threads, tile)
  int64_t bytes;         // in all; the others hold only where this fits a block

  FASTCAM_HOST_DEVICE CamMemory(
      CamNeeds needs, int64_t tile, int64_t stages, int64_t classes, int64_t positions) {
    const int64_t rows = needs.channels_last ? positions : tile;
    const int64_t pitch = tile_pitch(needs, tile, positions), per_channel = tile * needs.arithmetic;
    const int64_t tile_size = (rows * pitch * needs.element + 127) / 128 * 128;
    bytes = stages * tile_size;
    tile_bytes = static_cast<int32_t>(tile_size);
    gradients = take(needs.gradients ? stages * tile_size : 0);
    accumulators = take(classes * channel_groups(positions) * positions * needs.arithmetic);
    totals = take(per_channel);
    weights = take(per_channel);
    partial_sums = take(kRows * per_channel);
  }

 private:
  FASTCAM_HOST_DEVICE int32_t take(int64_t size) {
    const int64_t offset = bytes;
    bytes += (size + 15) / 16 * 16;
    return static_cast<int32_t>(offset);
  }
};

// Positions a block. Where no sum over a channel is needed, windows that leave room for long rows of
// channels or positions, all about as large.
inline int64_t plan_window(CamNeeds needs, const Extents& e) {
  if (needs.whole_channels) return e.positions;
  const int64_t most = needs.channels_last ? 128 : 1024, vector = 16 / needs.element;
  const int64_t windows = (e.positions + most - 1) / most;
  if (windows == 1) return e.positions;
  return ((e.positions + windows - 1) / windows + vector - 1) / vector * vector;
}

// The fewest channels whose start is a multiple of 16 bytes, so that a tile can be copied 16 bytes at a
// time.
inline int64_t least_tile(CamNeeds needs, const Extents& e) {
  const int64_t step = needs.element * (needs.channels_last ? 1 : e.positions);
  int64_t tile = 1;
  while (tile * step % 16 != 0) tile *= 2;
  return tile;
}

// The largest tile of at most kTileBytes that leaves enough of them to fill every multiprocessor; for
// channels_last 32 bytes a position, as they come from memory, where these fit a block.
inline int64_t plan_tile(CamNeeds needs, const Extents& e, int64_t window, const Device& device) {
  constexpr int64_t kTileBytes = 16 * 1024, kMaxTile = 64, kSector = 32;
  const int64_t bytes = window * needs.element * (needs.gradients ? 2 : 1);
  const int64_t windows = (e.positions + window - 1) / window;
  int64_t tile = least_tile(needs, e);
  const auto fits = [&](int64_t larger) {
    return larger <= kMaxTile && larger <= 2 * e.channels && larger * bytes <= kTileBytes &&
           e.images * windows * e.channels >= device.multiprocessors * larger;
  };
  const int64_t sector = kSector / needs.element;
  if (needs.channels_last && sector * bytes <= device.block_memory / 2) tile = sector;
  while (fits(2 * tile)) tile *= 2;
  return tile;
}

// Where no tile of whole channels fits, the plan has no tile: the weights are found first.
inline CamPlan plan_cam(CamNeeds needs, const Extents& e, const Device& device) {
  constexpr int64_t kMaxClasses = 8;
  constexpr int64_t kReserved = 1024;  // bytes of shared memory that the system takes a block
  const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
  CamPlan plan{};
  plan.stages = 2;
  plan.window = plan_window(needs, e);
  plan.tile = plan_tile(needs, e, plan.window, device);
  plan.classes = least(e.classes, kMaxClasses);
  const auto bytes = [&] {
    return CamMemory(needs, plan.tile, plan.stages, plan.classes, plan.window).bytes;
  };
  while (plan.classes > 1 && bytes() > device.block_memory / 2) --plan.classes;
  if (bytes() > device.block_memory) plan.stages = 1;
  plan.shared_bytes = bytes();
  if (plan.shared_bytes > device.block_memory) return {};

  // One wave of blocks; more slices than fill every multiprocessor once only while writing and reading
  // their partial maps stays below a sixteenth of what is read anyway.
  const int64_t maps = e.images * plan.class_tiles(e) * plan.windows(e);
  const int64_t tiles = (e.channels + plan.tile - 1) / plan.tile;
  const int64_t resident =
      least(int64_t{kResident}, device.multiprocessor_memory / (plan.shared_bytes + kReserved));
  const int64_t filling = device.multiprocessors / maps;
  const int64_t wave = device.multiprocessors * (resident > 1 ? resident : 1) / maps;
  const int64_t inputs = 1 + (needs.gradients ? plan.classes : 0);
  const int64_t cheap =
      e.channels * inputs * needs.element / (16 * 2 * plan.classes * needs.arithmetic);
  plan.slices = least(wave, cheap > filling ? cheap : filling);
  plan.slices = least(plan.slices, tiles);
  if (plan.slices < 1) plan.slices = 1;
  return plan;
}

// Slices of the positions of channels whose weights are found by a launch of their own: enough for every
// multiprocessor, each of at least kLeast positions.
inline int64_t plan_weight_slices(int64_t blocks, int64_t positions, const Device& device) {
  constexpr int64_t kLeast = 256;
  const int64_t wave = kResident * device.multiprocessors;
  const int64_t filling = blocks < 1 ? 1 : wave / blocks, most = positions / kLeast;
  const int64_t slices = filling < most ? filling : most;
  return slices > 1 ? slices : 1;
}

// Whether the launch that enlarges a map adds up its slices, rather than one of its own. Every block of
// that launch does it anew, which pays while a thread of it adds up a few dozen values.
inline bool folds_while_enlarging(int64_t slices, int64_t positions) {
  return slices == 1 || slices * positions <= 32 * kThreads;
}

}  // namespace fastcam
