// cp.async: copies of 16 bytes to shared memory by each thread.
#pragma once

#include "cluster.h"

namespace emu {

inline void finish_copy(const Copy& copy) {
  SharedMemory& shared = *current->cta->shared;
  const bool tracked = shared.holds(copy.to);  // not one of a static array
  if (tracked) shared.end_write(shared.offset(copy.to), 16, "cp.async");
  if (copy.in_bounds) {
    memcpy(copy.to, copy.from, 16);
  } else {
    memset(copy.to, 0, 16);
  }
  // It counts as an ordinary write of the thread.
  if (tracked) shared.write(shared.offset(copy.to), 16, current->index, "cp.async");
}

inline void cp_async_16(void* to, const void* from, bool in_bounds) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16) {
    fail("cp.async: an address is not aligned to 16 bytes");
  }
  SharedMemory& shared = *current->cta->shared;
  if (shared.holds(to)) shared.begin_write(shared.offset(to), 16, "cp.async");
  current->copies.issue({static_cast<uint8_t*>(to), static_cast<const uint8_t*>(from), in_bounds});
  if (cfg.async == EAGER || sometimes(4)) current->copies.hurry(finish_copy);
}
inline void cp_async_commit() { current->copies.commit(); }
inline void cp_async_wait(int keep) { current->copies.wait(keep, finish_copy); }

}  // namespace emu
