// Wrong accesses to memory, and launches that no GPU takes.
#pragma once

#include "common.h"

namespace aim_fast::probe {

inline void write_past_the_end(bool wrong) {
  launch({}, [=] { emu::dynamic_shared()[wrong ? 8192 : 8191] = 0; });
}
inline void wild_pointer(bool wrong) {
  launch({}, [=] {
    static int here;
    int* volatile target = wrong && first() ? nullptr : &here;
    *target = 1;
  });
}
inline int deep(int depth) {
  volatile char frame[4096];
  frame[depth % 4096] = 1;
  return depth == 0 ? frame[0] : deep(depth - 1) + frame[depth % 4096];
}
inline void stack_used_up(bool wrong) {
  launch({}, [=] { deep(wrong ? 1000 : 10); });
}
inline void exception_in_a_kernel(bool wrong) {
  launch({}, [=] {
    if (wrong && threadIdx.x == 5) throw std::runtime_error("thrown in the kernel");
  });
}
inline void too_many_threads(bool wrong) {
  launch({wrong ? 1056u : 1024u}, [] {});
}
inline void too_much_shared_memory(bool wrong) {
  launch({.shared = (227 << 10) + size_t{wrong}}, [] {});
}
inline void too_large_a_cluster(bool wrong) {
  launch({32, wrong ? 16u : 8u}, [] {});
}
inline void grid_of_no_whole_clusters(bool wrong) {
  emu::launch(dim3(wrong ? 3 : 4), dim3(32), dim3(2), 0, [] {});
}

}  // namespace aim_fast::probe
