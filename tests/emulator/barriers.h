// Collectives of a warp, barriers of a CTA and of a cluster.
#pragma once

#include "cluster.h"

namespace emu {

// The last thread of the warp to come runs `work` on the arguments of all, by lane.
template <class Work>
void warp_collective(const char* operation, void* argument, Work&& work) {
  Thread* self = current;
  Rendezvous& meeting = self->cta->warps[self->index / 32];
  const unsigned lanes = std::min(32u, threads_per_cta() - self->index / 32 * 32);
  if (meeting.count == 0) {
    meeting.operation = operation;
  } else if (meeting.operation != operation) {
    fail(std::string("a warp diverges: ") + operation + " in one lane, " + meeting.operation + " in another");
  }
  meeting.arguments[self->lane()] = argument;
  if (++meeting.count < lanes) return wait_while(&meeting.met, ~0ull, meeting.met, operation);
  meeting.count = 0;
  work(meeting.arguments, lanes);
  ++meeting.met;
}

inline void arrive(Barrier& barrier, unsigned thread, unsigned threads, unsigned needed, const char* who) {
  if (barrier.count == 0) barrier.needed = needed;
  if (barrier.needed != needed) {
    fail(std::string(who) + ": one barrier with counts " + std::to_string(barrier.needed) + " and " +
         std::to_string(needed));
  }
  barrier.came.resize(threads);
  if (barrier.came[thread] == barrier.completed + 1) fail(std::string(who) + ": a thread comes twice in one phase");
  barrier.came[thread] = barrier.completed + 1;
  if (++barrier.count == needed) {
    barrier.count = 0;
    ++barrier.completed;
  }
}

inline void arrive_and_wait(Barrier& barrier, unsigned thread, unsigned threads, unsigned needed, const char* who) {
  const uint64_t phase = barrier.completed;
  arrive(barrier, thread, threads, needed, who);
  wait_while(&barrier.completed, ~0ull, phase, who);
}

inline Barrier& named_barrier(int id, int threads, const char* who) {
  if (id < 1 || id > 15) fail(std::string(who) + ": the barrier's number is not of 1..15");
  if (threads <= 0 || threads % 32 || threads > int(threads_per_cta() + 31) / 32 * 32) {
    fail(std::string(who) + ": the count is no multiple of a warp, or more than the CTA has");
  }
  return current->cta->barriers[id];
}
inline void named_barrier_sync(int id, int threads) {
  arrive_and_wait(named_barrier(id, threads, "bar.sync"), current->index, threads_per_cta(), threads, "bar.sync");
}
inline void named_barrier_arrive(int id, int threads) {
  arrive(named_barrier(id, threads, "bar.arrive"), current->index, threads_per_cta(), threads, "bar.arrive");
}

inline void sync_threads() {
  const unsigned threads = threads_per_cta();
  arrive_and_wait(current->cta->barriers[0], current->index, threads, threads, "__syncthreads");
}

inline void cluster_sync() {
  const unsigned threads = threads_per_cta() * static_cast<unsigned>(cluster->ctas.size());
  const unsigned thread = current->cta->rank * threads_per_cta() + current->index;
  arrive_and_wait(cluster->barrier, thread, threads, threads, "barrier.cluster");
}

}  // namespace emu
