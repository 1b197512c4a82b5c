// The dynamic shared memory of one CTA, and who may touch which part of it at the moment.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "config.h"

namespace emu {

constexpr size_t kSharedLimit = 227 << 10;     // what a CTA may have on sm_90
constexpr size_t kSharedReserved = 228 << 10;  // what is behind the end of the CTA's own shows writes past it
constexpr uint8_t kFresh = 0xff;               // NaN in every floating-point type
constexpr uint32_t kOffsetBits = 24;           // an address is the offset, and the CTA's rank above it
constexpr uint32_t kOffsets = (1u << kOffsetBits) - 1;

class SharedMemory {
 public:
  SharedMemory() : bytes_(static_cast<uint8_t*>(std::aligned_alloc(1024, kSharedReserved))) {}
  SharedMemory(const SharedMemory&) = delete;
  ~SharedMemory() { std::free(bytes_); }

  void begin(size_t size, size_t threads) {
    size_ = size;
    memset(bytes_, kFresh, kSharedReserved);
    units_.assign(kSharedReserved / kUnit, Unit{});
    fences_.assign(threads, 0);
  }
  void end() const {
    const auto untouched = [](uint8_t byte) { return byte == kFresh; };
    if (!std::all_of(bytes_ + size_, bytes_ + kSharedReserved, untouched)) {
      fail("the kernel wrote past the end of its shared memory");
    }
  }

  uint8_t* bytes() const { return bytes_; }
  size_t size() const { return size_; }
  bool holds(const void* p) const { return p >= bytes_ && p < bytes_ + kSharedReserved; }
  size_t offset(const void* p) const { return static_cast<const uint8_t*>(p) - bytes_; }

  // Ordinary accesses; writes are not seen by the asynchronous proxy before the writer's fence.
  void read(size_t offset, size_t count, const char* who) const {
    for (const Unit& unit : units(offset, count, who)) {
      if (unit.incoming) fail(std::string(who) + " reads shared memory that a copy in flight will write");
    }
  }
  void write(size_t offset, size_t count, unsigned thread, const char* who) {
    for (Unit& unit : units(offset, count, who)) {
      check_free(unit, who);
      unit.writer = static_cast<uint16_t>(thread + 1);
      unit.fences = fences_[thread];
    }
  }
  void fence(unsigned thread) { ++fences_[thread]; }

  // Accesses through the asynchronous proxy.
  void async_read(size_t offset, size_t count, const char* who) const {
    for (const Unit& unit : units(offset, count, who)) {
      if (unit.incoming) fail(std::string(who) + " reads shared memory that a copy in flight will write");
      if (unit.writer && unit.fences == fences_[unit.writer - 1]) {
        fail(std::string(who) + " reads shared memory that thread " + std::to_string(unit.writer - 1) +
             " wrote without fence.proxy.async");
      }
    }
  }
  // From its issue to its end nobody may touch what a copy will write, nor write what a store reads.
  void begin_write(size_t offset, size_t count, const char* who) {
    for (Unit& unit : units(offset, count, who)) {
      check_free(unit, who);
      unit.incoming = true;
    }
    memset(bytes_ + offset, kFresh, count);
  }
  void end_write(size_t offset, size_t count, const char* who) {
    for (Unit& unit : units(offset, count, who)) unit.incoming = unit.writer = 0;
  }
  void begin_read(size_t offset, size_t count, const char* who) {
    async_read(offset, count, who);
    for (Unit& unit : units(offset, count, who)) ++unit.readers;
  }
  void end_read(size_t offset, size_t count, const char* who) {
    for (Unit& unit : units(offset, count, who)) --unit.readers;
  }

 private:
  static constexpr size_t kUnit = 16;
  struct Unit {
    uint32_t fences = 0;   // how many the writer had made
    uint16_t writer = 0;   // the thread after which it is named, from 1
    uint8_t incoming = 0;  // a copy in flight will write here
    uint8_t readers = 0;   // stores in flight that read here
  };
  template <class T>
  struct Span {
    T *first, *last;
    T* begin() const { return first; }
    T* end() const { return last; }
  };

  static void check_free(const Unit& unit, const char* who) {
    if (unit.incoming) fail(std::string(who) + " writes shared memory that a copy in flight will write");
    if (unit.readers) fail(std::string(who) + " writes shared memory that a store in flight still reads");
  }
  Span<Unit> units(size_t offset, size_t count, const char* who) {
    check(offset, count, who);
    return {units_.data() + offset / kUnit, units_.data() + (offset + count + kUnit - 1) / kUnit};
  }
  Span<const Unit> units(size_t offset, size_t count, const char* who) const {
    check(offset, count, who);
    return {units_.data() + offset / kUnit, units_.data() + (offset + count + kUnit - 1) / kUnit};
  }
  void check(size_t offset, size_t count, const char* who) const {
    if (offset + count > size_) fail(std::string(who) + " past the end of shared memory");
  }

  uint8_t* bytes_;
  size_t size_ = 0;
  std::vector<Unit> units_;
  std::vector<uint32_t> fences_;  // of each thread
};

}  // namespace emu
