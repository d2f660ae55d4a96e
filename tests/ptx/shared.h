// A block's shared memory: what is in it, and who wrote and read it since which barrier.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "program.h"

namespace ptx {

// A thread at a point of its warp's time, which goes on with each __syncwarp
struct Who {
  uint16_t thread, sync;
  uint32_t warp() const { return thread / kWarp; }
};

class SharedMemory {
 public:
  // Of a block that starts: NaN in every floating-point type
  void start(const Kernel& kernel, uint32_t dynamic_bytes) {
    unit_ = kernel.shared_unit;
    const uint32_t size = kernel.dynamic_start + dynamic_bytes;
    memory_.assign(size + 16, kPoison);
    units_.assign(size / unit_ + 1, {});
    for (const Array& array : kernel.shared) allow(array.offset, array.bytes);
    allow(kernel.dynamic_start, dynamic_bytes);
    epoch_ = 1;
  }

  void barrier() { ++epoch_; }

  // The bytes at an address; `defined`: whether they have been written. What is wrong is thrown.
  const uint8_t* read(uint64_t address, uint32_t bytes, Who who, bool& defined) {
    defined = true;
    for (Unit& unit : units(address, bytes)) {
      if (unit.writer_epoch == epoch_ && before(unit.writer, who))
        throw Fault("a race: " + name(unit.writer) + " wrote this since the last barrier");
      if (unit.reader_epoch != epoch_) unit.reader_warps = 0;
      const uint32_t warp = 1u << who.warp();
      const bool same = unit.reader_warps == warp && unit.reader.sync == who.sync;
      const bool many = same && unit.reader.thread != who.thread;
      unit.reader_epoch = epoch_;
      unit.reader_warps |= warp;
      unit.reader = {many ? kMany : who.thread, who.sync};
      defined &= unit.writer_epoch > 0;
    }
    return memory_.data() + (address - kSharedBase);
  }

  uint8_t* write(uint64_t address, uint32_t bytes, Who who) {
    for (Unit& unit : units(address, bytes)) {
      claim(unit, who);
      unit.writer_epoch = epoch_;
      unit.writer = who;
    }
    return memory_.data() + (address - kSharedBase);
  }

  // An asynchronous copy is on its way: nobody may touch its target until it has landed, which is a write.
  void expect(uint64_t address, uint32_t bytes, Who who) {
    for (Unit& unit : units(address, bytes)) {
      claim(unit, who);
      unit.in_flight = true;
    }
    std::memset(memory_.data() + (address - kSharedBase), kPoison, bytes);
  }
  void land(uint64_t address, uint32_t bytes, Who who, const uint8_t* data) {
    for (uint32_t i = 0; i < bytes / unit_; ++i)
      units_[(address - kSharedBase) / unit_ + i].in_flight = false;
    std::memcpy(write(address, bytes, who), data, bytes);
  }

 private:
  static constexpr int kPoison = 0xff;
  static constexpr uint16_t kMany = 0xffff;

  // So many bytes that no access takes a part of them
  struct Unit {
    uint32_t writer_epoch = 0, reader_epoch = 0, reader_warps = 0;
    Who writer{0, 0}, reader{0, 0};  // the last reader; or kMany of its warp
    bool allowed = false, in_flight = false;
  };
  struct Range {
    Unit *first, *last;
    Unit* begin() const { return first; }
    Unit* end() const { return last; }
  };

  static std::string name(Who who) { return "thread " + std::to_string(who.thread); }

  // Whether nothing but a barrier would order what two threads do
  static bool before(Who other, Who who) {
    return other.thread != who.thread && (other.warp() != who.warp() || other.sync == who.sync);
  }

  void allow(uint32_t offset, uint32_t bytes) {
    for (uint32_t i = 0; i < bytes / unit_; ++i) units_[offset / unit_ + i].allowed = true;
  }

  Range units(uint64_t address, uint32_t bytes) {
    if (address % bytes != 0)
      throw Fault("an access of " + std::to_string(bytes) + " bytes is misaligned");
    const uint64_t offset = address - kSharedBase;
    if (address < kSharedBase || offset + bytes > units_.size() * unit_)
      throw Fault("an access outside shared memory");
    Unit* first = units_.data() + offset / unit_;
    const Range range{first, first + bytes / unit_};
    for (const Unit& unit : range) {
      if (!unit.allowed) throw Fault("an access outside shared memory");
      if (unit.in_flight) throw Fault("a copy to this is on its way");
    }
    return range;
  }

  void claim(const Unit& unit, Who who) const {
    if (unit.writer_epoch == epoch_ && before(unit.writer, who))
      throw Fault("a race: " + name(unit.writer) + " wrote this since the last barrier");
    if (unit.reader_epoch != epoch_) return;
    const bool same_warp = unit.reader_warps == 1u << who.warp();
    if (!same_warp || (unit.reader.sync == who.sync && unit.reader.thread != who.thread))
      throw Fault(
          "a race: another thread read this since the last barrier" +
          (same_warp ? std::string(" of its warp") : std::string()));
  }

  std::vector<uint8_t> memory_;
  std::vector<Unit> units_;
  uint32_t unit_ = 1, epoch_ = 1;
};

}  // namespace ptx
