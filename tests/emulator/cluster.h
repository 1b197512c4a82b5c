// The cluster that runs: its CTAs and threads, and how a thread waits.
#pragma once

#include <vector_types.h>

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "config.h"
#include "fibers.h"
#include "groups.h"
#include "parts.h"
#include "shared_memory.h"

namespace emu {

struct Cta;

// A CUDA thread.
struct Thread {
  explicit Thread(size_t index) : stack(index) {}

  Stack stack;
  void* stack_pointer = nullptr;
  uint3 position;      // threadIdx
  unsigned index = 0;  // in the CTA
  Cta* cta = nullptr;
  Thread* next = nullptr;  // of its warp, the first after the last
  bool done = false;

  // Waits while (*word & mask) == value, if there is a word.
  const volatile uint64_t* word = nullptr;
  uint64_t mask = 0, value = 0;
  const char* where = "";
  const Mbarrier* barrier = nullptr;  // that it waits for, for the report

  Groups<Copy> copies;      // cp.async
  Groups<BoxStore> stores;  // TMA
  bool fenced = false;      // wgmma.fence, since it may last have touched registers of wgmma

  bool runnable() const { return !done && !(word && (*word & mask) == value); }
  unsigned lane() const { return index % 32; }
};

struct Cta {
  uint3 position;  // blockIdx
  unsigned rank = 0;
  unsigned live = 0;  // threads that have not ended
  SharedMemory* shared = nullptr;
  std::vector<Rendezvous> warps;
  std::vector<Warpgroup> warpgroups;
  std::vector<Barrier> barriers;  // 16: __syncthreads and the named ones
  Mbarriers mbarriers;
};

struct Cluster {
  std::deque<Cta> ctas;
  Barrier barrier;
  std::vector<Thread*> threads;
  std::vector<BoxLoad> loads;  // TMA loads in flight
  unsigned live = 0;
};

inline Thread* current = nullptr;  // null: the scheduler runs
inline Cluster* cluster = nullptr;
inline dim3 grid_size, block_size;
inline void* scheduler = nullptr;  // its stack pointer

inline unsigned threads_per_cta() { return block_size.x * block_size.y * block_size.z; }

inline void fail(const std::string& what) {
  if (!current) throw std::runtime_error("emulated CUDA: " + what);
  const uint3 block = current->cta->position;
  throw std::runtime_error("emulated CUDA: " + what + " [block " + std::to_string(block.x) + "," +
                           std::to_string(block.y) + " thread " + std::to_string(current->index) + "]");
}

// To the next thread of the warp that can run, else to the scheduler: a warp's collectives then cost one switch a
// thread.
inline void hand_over() {
  Thread* self = current;
  Thread* next = self->next;
  while (next != self && !next->runnable()) next = next->next;
  if (next == self || sometimes(16)) {
    emu_switch(&self->stack_pointer, scheduler);
  } else {
    current = next;
    emu_switch(&self->stack_pointer, next->stack_pointer);
  }
}

// Waits while (*word & mask) == value.
inline void wait_while(const volatile uint64_t* word, uint64_t mask, uint64_t value, const char* where,
                       const Mbarrier* barrier = nullptr) {
  Thread* self = current;
  self->word = word, self->mask = mask, self->value = value, self->where = where, self->barrier = barrier;
  while (!self->runnable()) hand_over();
  self->word = nullptr;
}

// ---- addresses of shared memory, as instructions take them

inline uint8_t* dynamic_shared() { return current->cta->shared->bytes(); }
inline uint32_t rank_of(uint32_t address) { return address >> kOffsetBits; }
inline uint32_t offset_of(uint32_t address) { return address & kOffsets; }

inline uint32_t shared_address(const void* p) {
  const Cta& cta = *current->cta;
  if (!cta.shared->holds(p)) fail("the pointer is not one of this CTA's dynamic shared memory");
  return static_cast<uint32_t>(cta.shared->offset(p)) | cta.rank << kOffsetBits;
}
inline uint32_t map_to_rank(uint32_t address, uint32_t rank) {
  if (rank >= cluster->ctas.size()) fail("mapa: the cluster has no such CTA");
  return offset_of(address) | rank << kOffsetBits;
}
inline uint32_t cluster_rank() { return current->cta->rank; }

// The CTA of an address, which must not have ended.
inline Cta& cta_of(uint32_t address, const char* who) {
  if (rank_of(address) >= cluster->ctas.size()) fail(std::string(who) + ": the cluster has no such CTA");
  Cta& cta = cluster->ctas[rank_of(address)];
  if (!cta.live) fail(std::string(who) + " at the shared memory of a CTA that has ended");
  return cta;
}

}  // namespace emu
