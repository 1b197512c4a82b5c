// TMA: boxes of a matrix to and from shared memory.
#pragma once

#include "cluster.h"
#include "mbarrier.h"

namespace emu {

// Where TMA and wgmma find what is meant for `address`: bits 4.. exchanged with bits 7.. as the mode says.
inline uint32_t swizzle(uint32_t address, uint32_t mode) {
  constexpr uint32_t kBits[] = {0, 7, 3, 1};
  return address ^ ((address >> 7 & kBits[mode]) << 4);
}

// Calls copy(in shared memory, in global memory, bytes) for each piece of the box that lies in the matrix, and
// outside(in shared memory, bytes) for what does not.
template <class Inside, class Outside>
void walk_box(const TensorMap& map, uint32_t offset, int64_t x, int64_t y, Inside&& inside, Outside&& outside) {
  const uint32_t row_bytes = map.box_row_bytes(), step = 16 / map.esz;
  for (uint32_t row = 0; row < map.box[1]; ++row) {
    const int64_t at_row = y + row;
    const bool row_inside = at_row >= 0 && at_row < int64_t(map.dim[1]);
    for (uint32_t i = 0; i < map.box[0]; i += step) {
      const uint32_t shared = swizzle(offset + row * row_bytes + i * map.esz, map.swz);
      uint8_t* global = map.base + at_row * int64_t(map.stride_bytes) + (x + i) * map.esz;
      if (row_inside && x + i >= 0 && x + i + step <= int64_t(map.dim[0])) {
        inside(shared, global, 16);
        continue;
      }
      for (uint32_t j = 0; j < step; ++j) {
        const bool column_inside = x + i + j >= 0 && x + i + j < int64_t(map.dim[0]);
        if (row_inside && column_inside) {
          inside(shared + j * map.esz, global + j * map.esz, map.esz);
        } else {
          outside(shared + j * map.esz, map.esz);
        }
      }
    }
  }
}

inline void check_box(const TensorMap& map, uint32_t offset, const char* who) {
  const std::string name = who;
  if ((reinterpret_cast<uintptr_t>(map.base) | map.stride_bytes) % 16) {
    fail(name + ": the matrix or its rows are not aligned to 16 bytes");
  }
  if (map.dim[0] == 0 || map.dim[1] == 0) fail(name + ": an empty matrix");
  if (map.dim[0] * map.esz > map.stride_bytes && map.dim[1] > 1) fail(name + ": rows that overlap");
  if (map.box[0] > 256 || map.box[1] > 256) fail(name + ": a box of more than 256 a side");
  if (map.box_row_bytes() % 16) fail(name + ": rows of the box are no multiple of 16 bytes");
  constexpr uint32_t kSpan[] = {0, 128, 64, 32};
  if (map.swz && map.box_row_bytes() > kSpan[map.swz]) fail(name + ": rows of the box are longer than the swizzle");
  // The pattern is of the address: a tile that a swizzle begins elsewhere lies otherwise than wgmma expects.
  if (offset % (map.swz ? 8 * kSpan[map.swz] : 128)) {
    fail(name + ": the address in shared memory is not aligned to 128 bytes, or 1024 with the 128-byte swizzle");
  }
}

inline void load_box(const BoxLoad& load) {
  Cta& cta = cta_of(load.barrier, "a TMA load in flight");
  uint8_t* bytes = cta.shared->bytes();
  cta.shared->end_write(load.offset, load.map.box_bytes(), "TMA load");
  walk_box(
      load.map, load.offset, load.x, load.y,
      [&](uint32_t to, const uint8_t* from, uint32_t count) { memcpy(bytes + to, from, count); },
      [&](uint32_t to, uint32_t count) { memset(bytes + to, 0, count); });
  advance(mbarrier_at(load.barrier, "TMA load"), 0, load.map.box_bytes());
}

inline void issue_load(uint32_t address, const TensorMap& map, uint32_t barrier, int x, int y) {
  Cta& cta = cta_of(address, "TMA load");
  if (!mbarrier_at(barrier, "TMA load").visible) {
    fail("TMA load: no fence.mbarrier_init made the initialisation of its mbarrier visible");
  }
  cta.shared->begin_write(offset_of(address), map.box_bytes(), "TMA load");
  const BoxLoad load{map, offset_of(address), barrier, x, y};
  if (cfg.async == EAGER) return load_box(load);
  cluster->loads.push_back(load);
}

inline void issue_tma_load(uint32_t address, const TensorMap* map, uint32_t barrier, int x, int y) {
  check_box(*map, offset_of(address), "TMA load");
  if (rank_of(barrier) != rank_of(address)) fail("TMA load: the mbarrier is in another CTA than the tile");
  issue_load(address, *map, barrier, x, y);
}
inline void issue_tma_multicast(uint32_t address, const TensorMap* map, uint32_t barrier, int x, int y, uint32_t mask) {
  check_box(*map, offset_of(address), "TMA load");
  if (mask == 0 || mask >> cluster->ctas.size()) fail("TMA multicast: the mask names a CTA that the cluster lacks");
  for (uint32_t rank = 0; rank < cluster->ctas.size(); ++rank) {
    if (mask >> rank & 1) issue_load(map_to_rank(address, rank), *map, map_to_rank(barrier, rank), x, y);
  }
}

// Lets one of the loads in flight land; false when there is none.
inline bool land_one() {
  std::vector<BoxLoad>& loads = cluster->loads;
  if (loads.empty()) return false;
  const size_t i = cfg.async == RANDOM ? generator() % loads.size() : 0;
  const BoxLoad load = loads[i];
  loads.erase(loads.begin() + static_cast<std::ptrdiff_t>(i));
  load_box(load);
  return true;
}

inline void store_box(const BoxStore& store) {
  SharedMemory& shared = *current->cta->shared;
  walk_box(
      store.map, store.offset, store.x, store.y,
      [&](uint32_t from, uint8_t* to, uint32_t count) { memcpy(to, shared.bytes() + from, count); },
      [](uint32_t, uint32_t) {});
  shared.end_read(store.offset, store.map.box_bytes(), "TMA store");
}

inline void issue_tma_store(const TensorMap* map, uint32_t address, int x, int y) {
  check_box(*map, offset_of(address), "TMA store");
  if (rank_of(address) != current->cta->rank) fail("TMA store from the shared memory of another CTA");
  current->cta->shared->begin_read(offset_of(address), map->box_bytes(), "TMA store");
  current->stores.issue({*map, offset_of(address), x, y});
  if (cfg.async == EAGER || sometimes(4)) current->stores.hurry(store_box);
}
inline void bulk_commit() { current->stores.commit(); }
inline void bulk_wait_read(int keep) { current->stores.wait(keep, store_box); }

inline void fence_proxy_async() {
  current->cta->shared->fence(current->index);
  fence_mbarrier_init();  // which this one can stand for
}

}  // namespace emu
