// mbarriers. Their state is kept beside shared memory, where a mark stands in their place: data written over it shows.
#pragma once

#include "cluster.h"

namespace emu {

constexpr uint64_t kMbarrierMark = 0x6d62617272696572;
constexpr int64_t kMaxCount = (1 << 20) - 1;

inline Mbarrier& mbarrier_at(uint32_t address, const char* who) {
  Cta& cta = cta_of(address, who);
  const uint32_t offset = offset_of(address);
  const auto found = cta.mbarriers.find(offset);
  if (found == cta.mbarriers.end()) fail(std::string(who) + ": no mbarrier was initialised here");
  uint64_t mark;
  memcpy(&mark, cta.shared->bytes() + offset, 8);
  if (mark != kMbarrierMark) fail(std::string(who) + ": the mbarrier has been overwritten");
  return found->second;
}

inline void mbarrier_init(uint32_t address, uint32_t count) {
  Cta& cta = cta_of(address, "mbarrier.init");
  const uint32_t offset = offset_of(address);
  if (cta.rank != current->cta->rank) fail("mbarrier.init in another CTA");
  if (offset % 8) fail("mbarrier.init: the address is not aligned to 8 bytes");
  if (offset + 8 > cta.shared->size()) fail("mbarrier.init past the end of shared memory");
  if (count < 1 || count > kMaxCount) fail("mbarrier.init: the count is not of 1..2^20-1");
  if (cta.mbarriers.count(offset)) fail("mbarrier.init of an mbarrier that is in use");
  Mbarrier& barrier = cta.mbarriers[offset];
  barrier.count = count;
  barrier.pending = count;
  barrier.initialiser = current->index;
  barrier.seen.resize(threads_per_cta());
  memcpy(cta.shared->bytes() + offset, &kMbarrierMark, 8);
}

inline void fence_mbarrier_init() {
  for (auto& [offset, barrier] : current->cta->mbarriers) {
    barrier.visible = barrier.visible || barrier.initialiser == current->index;
  }
}

// Arrivals and bytes are taken off what the phase lacks; negative bytes are expected ones.
inline void advance(Mbarrier& barrier, int arrivals, int64_t bytes) {
  barrier.pending -= arrivals;
  barrier.bytes -= bytes;
  if (barrier.pending < 0) fail("mbarrier: more arrivals than its count");
  if (barrier.bytes > kMaxCount || barrier.bytes < -kMaxCount) fail("mbarrier: more than 2^20-1 bytes");
  if (barrier.pending == 0 && barrier.bytes == 0) {
    barrier.pending = barrier.count;
    ++barrier.completed;
  }
}

// An arrival that expects so many more bytes, perhaps at another CTA's mbarrier.
inline void mbarrier_arrive(uint32_t address, uint32_t expected) {
  Mbarrier& barrier = mbarrier_at(address, "mbarrier.arrive");
  if (rank_of(address) != current->cta->rank && !barrier.visible) {
    fail("mbarrier.arrive at another CTA's mbarrier, whose initialisation no fence.mbarrier_init made visible");
  }
  if (expected && rank_of(address) != current->cta->rank) fail("mbarrier.arrive.expect_tx in another CTA");
  advance(barrier, 1, -int64_t{expected});
}

inline void mbarrier_wait(uint32_t address, uint32_t parity) {
  if (rank_of(address) != current->cta->rank) fail("mbarrier.try_wait in another CTA");
  Mbarrier& barrier = mbarrier_at(address, "mbarrier.try_wait");
  if (parity > 1) fail("mbarrier.try_wait: the parity is not 0 or 1");
  uint64_t& seen = barrier.seen[current->index];
  // The thread waits for the phase after the last one it saw, and that one was followed by another already.
  if (seen % 2 == parity && barrier.completed > seen + 1) {
    fail("mbarrier.try_wait: the phase went by, and the next one too");
  }
  wait_while(&barrier.completed, 1, parity, "mbarrier.try_wait", &barrier);
  seen = barrier.completed;
}

}  // namespace emu
