// How a map is computed on a GPU: what one block takes, as a pure function of shapes and of the device.
//
// A block stages its slice of an image's channels in shared memory, a tile at a time, and looks at it there as
// often as the method asks, so activations and gradients come from device memory once.
//
// One word for each thing, here and in the kernels:
//
//   channels_last  channels are next to each other in memory (also tokens, (N, Z, C)); else `contiguous`
//   row            of a matrix in memory: of a tile, a position's channels (channels_last) or a channel's
//                  positions; of a map or a picture, its columns
//   vector         as many neighbouring elements as fill 16 bytes; a Pack: any number that is moved at once
//
// What a block takes:
//   slice          of what is summed: the partial sums of all slices are added up, or folded, later
//   share          of what is written, which no other block touches
//   window         the share of the positions; the fused kernel takes a window, classes and a slice
//   tile           the channels that are held at once, in shared memory or in a processor's cache
//   stage          room in shared memory for one tile; with two, one is filled while the other is read
//   step           one class of one tile
//   chunk          what a loop takes at a time
//
// What threads take together, beside CUDA's blocks of warps of lanes:
//   team           neighbouring threads that share a channel of a tile (channels_last: a position)
//   group          as many threads as positions, which take some channels or slices of the sum at each
#pragma once

#include <cstdint>

#include "kernels/layout.h"

namespace fastcam {

// The thread block of every kernel
constexpr int kLanes = 32, kWarps = 8, kThreads = kLanes * kWarps;

// Blocks of the fused kernel that a multiprocessor has registers for
constexpr int kResident = 2;

inline int64_t ceil_div(int64_t n, int64_t d) {
  return (n + d - 1) / d;
}

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

// What a kernel is instantiated for.
struct CamNeeds {
  int64_t element, arithmetic;  // bytes
  bool channels_last;
  bool gradients;       // gradients are staged beside the activations
  bool whole_channels;  // weights are sums over all positions of a channel
};

// Groups of threads for a sum at `count` positions
FASTCAM_HOST_DEVICE int64_t thread_groups(int64_t count) {
  return count < kThreads ? kThreads / count : 1;
}

// Neighbouring positions that a thread reads at once: as many as fill 4 bytes, if they are contiguous and
// every row of a tile begins at a multiple of that.
inline int64_t positions_at_once(CamNeeds needs, int64_t positions) {
  return !needs.channels_last && needs.element == 2 && positions % 2 == 0 ? 2 : 1;
}

// Elements of a tile's row
inline int64_t tile_pitch(CamNeeds needs, int64_t tile, int64_t positions) {
  return needs.channels_last ? tile : positions;
}

// Where what lies in a block's shared memory, in bytes.
struct CamMemory {
  int32_t tile;          // the bytes of one staged tile of activations or gradients
  int32_t gradients;     // (stages, tile), behind the activations (stages, tile)
  int32_t accumulators;  // (classes, groups, positions)
  int32_t totals;        // (tile): the sums of the activations, for channels_last
  int32_t weights;       // (tile)
  int32_t partial_sums;  // (warps, tile) for channels_last, else (2, warps)
  int64_t bytes;         // in all; the others hold only where this fits a block

  CamMemory() = default;
  CamMemory(CamNeeds needs, int64_t tile, int64_t stages, int64_t classes, int64_t positions) {
    const int64_t rows = needs.channels_last ? positions : tile;
    const int64_t pitch = tile_pitch(needs, tile, positions), per_channel = tile * needs.arithmetic;
    const int64_t tile_bytes = (rows * pitch * needs.element + 127) / 128 * 128;
    this->tile = static_cast<int32_t>(tile_bytes);
    bytes = stages * tile_bytes;
    gradients = take(needs.gradients ? stages * tile_bytes : 0);
    const int64_t groups = thread_groups(positions / positions_at_once(needs, positions));
    accumulators = take(classes * groups * positions * needs.arithmetic);
    totals = take(needs.channels_last ? per_channel : 0);
    weights = take(per_channel);
    partial_sums = take(kWarps * (needs.channels_last ? per_channel : 2 * needs.arithmetic));
  }

 private:
  int32_t take(int64_t size) {
    const int64_t offset = bytes;
    bytes += (size + 15) / 16 * 16;
    return static_cast<int32_t>(offset);
  }
};

// What a block takes of the channels, positions and classes of an image, how many blocks that makes, and how
// its threads share a tile. All of it is known before the launch, so that no thread divides.
struct CamPlan {
  int32_t tile;     // channels staged at once, a power of two; 0: a tile does not fit
  int32_t stages;   // tiles held at once
  int32_t window;   // positions that a block takes
  int32_t classes;  // classes that a block takes
  int32_t slices;   // blocks that share the channels
  int32_t windows, class_shares;
  int32_t slice_tiles, longer_slices;  // tiles of a slice, of so many slices one more
  int32_t pitch;                       // elements between the rows of a staged tile
  int32_t at_once;                     // neighbouring positions that a thread takes
  int32_t groups;                      // of threads, which share the channels of a tile
  int32_t group_channels;  // the channels of one group, a multiple of 4; not for channels_last
  int32_t team;            // threads
  int32_t log_team;        // team = 2 ^ log_team
  int32_t teams;           // in a block
  int32_t reads;           // of a thread, of its channel: an odd number; not for channels_last
  CamMemory memory;

  int64_t blocks(const Extents& e) const { return e.images * class_shares * windows * slices; }
};

// Positions of a window: all, if channels are summed. Else windows leave room for long rows of channels or
// positions, and are all about as large.
inline int64_t plan_window(CamNeeds needs, const Extents& e) {
  if (needs.whole_channels) return e.positions;
  const int64_t most = needs.channels_last ? 128 : 1024, vector = 16 / needs.element;
  const int64_t windows = ceil_div(e.positions, most);
  if (windows == 1) return e.positions;
  return ceil_div(ceil_div(e.positions, windows), vector) * vector;
}

// The fewest channels whose start is a multiple of 16 bytes, so that a tile can be copied 16 bytes at a
// time.
inline int64_t least_tile(CamNeeds needs, const Extents& e) {
  const int64_t bytes = needs.element * (needs.channels_last ? 1 : e.positions);
  int64_t tile = 1;
  while (tile * bytes % 16 != 0) tile *= 2;
  return tile;
}

// The largest tile that leaves enough of them for every multiprocessor, or several for each resident block,
// which then may be larger: what a tile takes beside its elements is spread over more. For channels_last
// 32 bytes a position, as they come from memory, where these fit a block.
inline int64_t plan_tile(CamNeeds needs, const Extents& e, int64_t window, const Device& device) {
  constexpr int64_t kSector = 32, kLongest = 512;  // bytes of a position's channels
  constexpr int64_t kTilesABlock = 2;
  const int64_t bytes = window * needs.element * (needs.gradients ? 2 : 1);
  const int64_t maps = e.images * ceil_div(e.positions, window);
  const int64_t wave = kResident * device.multiprocessors, slices = wave / maps;
  // of a resident block: for two stages, and for what is held beside them
  const int64_t room = device.multiprocessor_memory / kResident * 15 / 16 / 2;
  int64_t tile = least_tile(needs, e);
  const auto fits = [&](int64_t larger) {
    const bool many = e.channels >= kTilesABlock * larger * (slices > 1 ? slices : 1);
    const int64_t most = needs.channels_last ? kLongest / needs.element : kThreads;
    return larger <= most && larger <= 2 * e.channels &&
           maps * e.channels >= device.multiprocessors * larger &&
           larger * bytes <= (many ? room : room * 2 / 3);
  };
  const int64_t sector = kSector / needs.element;
  if (needs.channels_last && sector * bytes <= device.block_memory / 2) tile = sector;
  while (fits(2 * tile)) tile *= 2;
  return tile;
}

// If no tile of whole channels fits, the plan has no tile: the weights are found first, by another kernel.
inline CamPlan plan_cam(CamNeeds needs, const Extents& e, const Device& device) {
  constexpr int64_t kMaxClasses = 8;
  constexpr int64_t kReserved = 1024;  // bytes of shared memory that the system takes a block
  const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
  const int64_t window = plan_window(needs, e);
  int64_t tile = plan_tile(needs, e, window, device);
  int64_t classes = least(e.classes, kMaxClasses), stages = 2;
  const auto memory = [&] { return CamMemory(needs, tile, stages, classes, window); };
  while (classes > 1 && memory().bytes > device.block_memory / 2) --classes;
  // While one block waits for its copies another computes: two blocks are worth more than two stages.
  const auto resident = [&] {
    const int64_t blocks = device.multiprocessor_memory / (memory().bytes + kReserved);
    return memory().bytes > device.block_memory ? 0 : least(blocks, kResident);
  };
  const int64_t with_two = resident();
  stages = 1;
  // rows of channels that begin anywhere are copied an element at a time, sooner than by two kernels
  while (!needs.channels_last && tile > 1 && memory().bytes > device.block_memory) tile /= 2;
  if (with_two == kResident || resident() <= with_two) stages = 2;
  if (memory().bytes > device.block_memory) return {};

  // One wave of blocks; more slices than fill every multiprocessor once only while writing and reading
  // their partial maps stays below a sixteenth of what is read anyway.
  const int64_t tiles = ceil_div(e.channels, tile), windows = ceil_div(e.positions, window);
  const int64_t class_shares = ceil_div(e.classes, classes),
                maps = e.images * class_shares * windows;
  const int64_t filling = device.multiprocessors / maps;
  const int64_t wave = device.multiprocessors * resident() / maps;
  const int64_t inputs = 1 + (needs.gradients ? classes : 0);
  const int64_t cheap = e.channels * inputs * needs.element / (16 * 2 * classes * needs.arithmetic);
  const int64_t most = least(least(wave, cheap > filling ? cheap : filling), tiles);
  const int64_t slices = most > 1 ? most : 1;

  const int64_t at_once = positions_at_once(needs, e.positions);
  const int64_t groups = thread_groups(window / at_once);
  const int64_t team = needs.channels_last ? tile * needs.element / 16 : kThreads / tile;
  int64_t log_team = 0;
  while (int64_t{1} << log_team < team) ++log_team;
  const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
  return {
      narrow(tile),
      narrow(stages),
      narrow(window),
      narrow(classes),
      narrow(slices),
      narrow(windows),
      narrow(class_shares),
      narrow(tiles / slices),
      narrow(tiles % slices),
      narrow(tile_pitch(needs, tile, window)),
      narrow(at_once),
      narrow(groups),
      narrow(ceil_div(ceil_div(tile, groups), 4) * 4),
      narrow(team),
      narrow(log_team),
      narrow(kThreads / team),
      narrow(ceil_div(window / at_once, team) | 1),
      memory()};
}

// Slices of the positions of channels whose weights are found by a kernel of their own: enough for every
// multiprocessor, each of at least kLeast positions.
inline int64_t plan_weight_slices(int64_t blocks, int64_t positions, const Device& device) {
  constexpr int64_t kLeast = 256;
  const int64_t wave = kResident * device.multiprocessors;
  const int64_t filling = blocks < 1 ? 1 : wave / blocks, most = positions / kLeast;
  const int64_t slices = filling < most ? filling : most;
  return slices > 1 ? slices : 1;
}

// Shares of each of `count` maps of `positions`: enough to fill a GPU twice, but each with more to write
// than the `reads` elements that it looks at first.
inline int64_t shares_per_map(int64_t count, int64_t positions, int64_t reads) {
  constexpr int64_t kFill = 256, kLeast = 4;
  const int64_t elements = kLeast * (reads > kThreads ? reads : kThreads);
  const int64_t filling = ceil_div(kFill, count), most = ceil_div(positions, elements);
  return filling < most ? filling : most;
}

// The same for maps that are normalized as they are; alone in a launch, as a second one is needed otherwise.
inline int64_t normalize_shares(int64_t count, int64_t positions) {
  constexpr int64_t kWhole = 16384;  // elements that one block takes sooner than a second launch
  return positions <= kWhole ? 1 : shares_per_map(count, positions, 0);
}

// Whether the launch that enlarges a map folds its slices, rather than one of its own. Every block of that
// launch does it anew, which pays while a thread of it adds up a few dozen values.
inline bool folds_while_enlarging(int64_t slices, int64_t positions) {
  return slices == 1 || slices * positions <= 32 * kThreads;
}

}  // namespace fastcam
