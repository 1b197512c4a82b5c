// Says who waits where when nobody can go on.
#pragma once

#include <sstream>
#include <string>

#include "cluster.h"

namespace emu {

inline std::string waits_for(const Thread& thread) {
  std::ostringstream text;
  text << thread.where;
  if (const Mbarrier* barrier = thread.barrier) {
    for (const auto& [offset, candidate] : thread.cta->mbarriers) {
      if (&candidate == barrier) text << " at offset " << offset;
    }
    text << " for parity " << thread.value << " (" << barrier->completed << " phases done, " << barrier->pending
         << " arrivals and " << barrier->bytes << " bytes missing)";
  }
  return text.str();
}

// Threads that wait alike are named together.
inline std::string deadlock_report(const Cluster& cluster) {
  std::ostringstream text;
  text << "emulated CUDA: deadlock, nobody can go on:";
  const Thread* first = nullptr;
  const Thread* last = nullptr;
  std::string of_first;
  const auto tell = [&] {
    if (!first) return;
    text << " [block " << first->cta->position.x << "," << first->cta->position.y << " threads " << first->index << "-"
         << last->index << " in " << of_first << "]";
  };
  for (const Thread* thread : cluster.threads) {
    const bool waits = !thread->done;
    const std::string what = waits ? waits_for(*thread) : "";
    if (waits && first && thread->cta == first->cta && what == of_first && last->index + 1 == thread->index) {
      last = thread;
      continue;
    }
    tell();
    first = waits ? thread : nullptr;
    last = thread;
    of_first = what;
  }
  tell();
  return text.str();
}

}  // namespace emu
