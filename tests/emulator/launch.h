// Runs a grid: its clusters one by one, the threads of a cluster in turns.
#pragma once

#include <algorithm>
#include <functional>
#include <mutex>

#include "barriers.h"
#include "report.h"
#include "signals.h"
#include "tma.h"

namespace emu {

inline const std::function<void()>* kernel_body = nullptr;
inline std::string thread_error;  // of the thread that has just handed over

inline void check_ended(Thread& thread) {
  if (thread.stores.issued() != thread.stores.finished()) {
    fail("the thread ends with TMA stores that it has not committed or not waited for");
  }
  if (thread.copies.issued() != thread.copies.finished()) {
    fail("the thread ends with cp.async that it has not committed or not waited for");
  }
}

// Where every fiber begins.
inline void run_thread() {
  try {
    (*kernel_body)();
    check_ended(*current);
  } catch (const std::exception& error) {
    thread_error = error.what();
  } catch (...) {
    thread_error = "emulated CUDA: the kernel threw what is no exception";
  }
  current->done = true;
  --current->cta->live;
  --cluster->live;
  for (;;) emu_switch(&current->stack_pointer, scheduler);
}

// Whom RANDOM lets run for some rounds: all, one CTA, or one warp.
struct Favour {
  int rounds = 0;
  const Cta* cta = nullptr;
  unsigned warp = 0;
  bool whole_cta = false;

  void draw(const Thread& thread) {
    if (rounds > 0) {
      --rounds;
      return;
    }
    cta = nullptr;
    const unsigned kind = generator() % 4;
    if (kind > 1) return;
    rounds = 1 + generator() % 60;
    cta = thread.cta;
    warp = thread.index / 32;
    whole_cta = kind == 0;
  }
  bool allows(const Thread& thread) const {
    return !cta || (thread.cta == cta && (whole_cta || thread.index / 32 == warp));
  }
};

inline void resume(Thread* thread) {
  current = thread;
  emu_switch(&scheduler, thread->stack_pointer);
  current = nullptr;
  if (!thread_error.empty()) throw std::runtime_error(std::exchange(thread_error, {}));
}

inline void run_threads() {
  std::vector<Thread*> order = cluster->threads;
  Favour favour;
  while (cluster->live) {
    if (cfg.async == RANDOM) {
      std::shuffle(order.begin(), order.end(), generator);
      favour.draw(*order[0]);
    }
    bool any = false;
    for (Thread* thread : order) {
      if (!thread->runnable() || !favour.allows(*thread)) continue;
      any = true;
      resume(thread);
      if (sometimes(64)) land_one();
    }
    if (any || land_one()) continue;
    if (favour.cta) {
      favour = {};
    } else {
      throw std::runtime_error(deadlock_report(*cluster));
    }
  }
}

inline void check_ended(const Cta& cta) {
  cta.shared->end();
  for (const Warpgroup& group : cta.warpgroups) {
    if (!group.steps.empty()) fail("a warpgroup diverges: some of its threads ended before a wgmma instruction");
    if (group.products.issued() != group.products.finished()) fail("the kernel ends with wgmma in flight");
  }
}

inline void begin_cta(Cta& cta, uint3 position, unsigned rank, SharedMemory& shared, size_t bytes) {
  const unsigned threads = threads_per_cta();
  cta.position = position;
  cta.rank = rank;
  cta.live = threads;
  cta.shared = &shared;
  cta.shared->begin(bytes, threads);
  cta.warps.resize((threads + 31) / 32);
  cta.warpgroups.resize((threads + 127) / 128);
  cta.barriers.resize(16);
}

inline void begin_thread(Thread& thread, Cta& cta, unsigned index) {
  thread.position = {index % block_size.x, index / block_size.x % block_size.y, index / (block_size.x * block_size.y)};
  thread.index = index;
  thread.cta = &cta;
  thread.done = thread.fenced = false;
  thread.word = nullptr;
  thread.copies.reset();
  thread.stores.reset();
  thread.stack_pointer = thread.stack.begin(run_thread);
}

inline void check_launch(dim3 grid, dim3 block, unsigned cluster_size, size_t shared) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads < 1 || threads > 1024)
    fail("a launch of " + std::to_string(threads) + " threads; 1 to 1024 are possible");
  if (shared > kSharedLimit)
    fail("a launch with " + std::to_string(shared) + " bytes of shared memory; 227 KB is most");
  if (cluster_size < 1 || cluster_size > 8) fail("a launch with clusters of more than 8 CTAs, or none");
  if (grid.x < 1 || grid.y < 1 || grid.z != 1 || grid.y > 65535)
    fail("a launch with a grid that is empty or too large");
  if (grid.x % cluster_size) fail("a launch with a grid that is no multiple of the cluster");
}

inline void run_grid(dim3 grid, unsigned cluster_size, size_t shared) {
  static std::deque<Thread> threads;  // kept from launch to launch, for their stacks
  static std::deque<SharedMemory> memories;
  const unsigned count = threads_per_cta();
  while (threads.size() < size_t{count} * cluster_size) threads.emplace_back(threads.size());
  while (memories.size() < cluster_size) memories.emplace_back();

  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; x += cluster_size) {
      Cluster present;
      cluster = &present;
      present.live = count * cluster_size;
      for (unsigned rank = 0; rank < cluster_size; ++rank) {
        begin_cta(present.ctas.emplace_back(), {x + rank, y, 0}, rank, memories[rank], shared);
        for (unsigned i = 0; i < count; ++i) {
          Thread& thread = threads[rank * count + i];
          begin_thread(thread, present.ctas.back(), i);
          thread.next = &threads[rank * count + (i % 32 == 31 || i + 1 == count ? i / 32 * 32 : i + 1)];
          present.threads.push_back(&thread);
        }
      }
      run_threads();
      if (!present.loads.empty()) fail("the kernel ends with TMA loads in flight");
      for (const Cta& cta : present.ctas) check_ended(cta);
    }
  }
}

// Runs `body` as every thread of the grid; throws std::runtime_error for a fault.
template <class Body>
void launch(dim3 grid, dim3 block, dim3 cluster_size, size_t shared, Body&& body) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  current = nullptr;  // of a launch that ended in a fault
  check_launch(grid, block, cluster_size.x, shared);
  const std::function<void()> function = body;
  kernel_body = &function;
  grid_size = grid;
  block_size = block;
  generator.seed(cfg.seed);
  run_guarded([&] { run_grid(grid, cluster_size.x, shared); });
}

}  // namespace emu
