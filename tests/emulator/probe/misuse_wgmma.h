// Wrong uses of wgmma.
#pragma once

#include "common.h"

namespace aim_fast::probe {

inline void wgmma_not_fenced(bool wrong) {
  launch({128}, [=] {
    load_tiles();
    float sums[16];
    wgmma_fence();
    multiply(sums);
    wgmma_commit();
    wgmma_wait<0>();
    if (!wrong) wgmma_fence();
    multiply(sums);
    wgmma_commit();
    wgmma_wait<0>();
  });
}
inline void wgmma_operand_in_flight(bool wrong) {
  launch({128}, [=] {
    load_tiles();
    float sums[16];
    wgmma_fence();
    multiply(sums);
    wgmma_commit();
    if (!wrong) wgmma_wait<0>();
    __syncthreads();
    if (first()) {
      mbarrier_expect(barrier(), 1024);
      tma_load(tile(), &box, barrier(), 0, 0);
    }
    wgmma_wait<0>();
    mbarrier_wait(barrier(), 1);
  });
}
inline void wgmma_operands_differ(bool wrong) {
  launch({128}, [=] {
    load_tiles();
    float sums[16];
    wgmma_fence();
    multiply(sums, wrong && threadIdx.x == 70 ? 1024 : 0);
    wgmma_commit();
    wgmma_wait<0>();
  });
}
inline void wgmma_past_the_end(bool wrong) {
  launch({128}, [=] {
    load_tiles();
    float sums[16];
    wgmma_fence();
    multiply(sums, wrong ? 5120 : 0);  // rows 24 and up of it lie behind
    wgmma_commit();
    wgmma_wait<0>();
  });
}
inline void wgmma_of_three_warps(bool wrong) {
  launch({wrong ? 96u : 128u}, [=] { wgmma_fence(); });
}
inline void wgmma_in_flight_at_the_end(bool wrong) {
  launch({128}, [=] {
    load_tiles();
    float sums[16];
    wgmma_fence();
    multiply(sums);
    wgmma_commit();
    if (!wrong) wgmma_wait<0>();
  });
}
inline void wgmma_left_by_one_warp(bool wrong) {
  launch({128}, [=] {
    if (wrong && threadIdx.x >= 96) return;
    wgmma_commit();
    if (!wrong) wgmma_wait<0>();
  });
}

}  // namespace aim_fast::probe
