// Wrong uses of mbarriers, named barriers, collectives of a warp, and clusters.
#pragma once

#include "common.h"

namespace aim_fast::probe {

inline void barrier_not_initialised(bool wrong) {
  launch({}, [=] {
    if (!wrong) init_barrier();
    if (first()) mbarrier_arrive(barrier());
  });
}
inline void barrier_init_not_fenced(bool wrong) {
  launch({}, [=] {
    if (!first()) return;
    mbarrier_init(barrier(), 1);
    if (!wrong) fence_mbarrier_init();
    mbarrier_expect(barrier(), 1024);
    tma_load(tile(), &box, barrier(), 0, 0);
    mbarrier_wait(barrier(), 0);
  });
}
inline void barrier_overwritten(bool wrong) {
  launch({}, [=] {
    init_barrier();
    if (!first()) return;
    emu::dynamic_shared()[kBarrier + (wrong ? 4 : 8)] = 1;
    mbarrier_arrive(barrier());
  });
}
inline void barrier_too_many_arrivals(bool wrong) {
  launch({}, [=] {
    init_barrier(2);
    if (!first()) return;
    mbarrier_expect(barrier(), 1024);
    mbarrier_arrive(barrier());
    if (wrong) mbarrier_arrive(barrier());
    tma_load(tile(), &box, barrier(), 0, 0);
    mbarrier_wait(barrier(), 0);
  });
}
inline void barrier_phase_gone_by(bool wrong) {
  launch({}, [=] {
    init_barrier();
    if (first()) {
      mbarrier_arrive(barrier());
      if (wrong) mbarrier_arrive(barrier());
    }
    __syncwarp();
    mbarrier_wait(barrier(), 0);
  });
}
inline void barrier_wrong_parity(bool wrong) {
  launch({}, [=] {
    init_barrier();
    if (first()) mbarrier_arrive(barrier());
    __syncwarp();
    mbarrier_wait(barrier(), 0);
    mbarrier_wait(barrier(), wrong ? 1 : 0);
  });
}

// ---- named barriers, collectives, clusters

inline void named_barrier_of_two_counts(bool wrong) {
  launch({64}, [=] { named_barrier_sync(1, wrong && threadIdx.x >= 32 ? 32 : 64); });
}
inline void named_barrier_twice(bool wrong) {
  launch({64}, [=] {
    if (threadIdx.x >= 32) return named_barrier_sync(1, 64);
    named_barrier_arrive(1, 64);
    if (wrong) named_barrier_arrive(1, 64);
  });
}
inline void named_barrier_of_no_whole_warps(bool wrong) {
  launch({64}, [=] { named_barrier_sync(1, wrong ? 48 : 64); });
}
inline void named_barrier_that_nobody_else_reaches(bool wrong) {
  launch({64}, [=] {
    if (!wrong || threadIdx.x < 32) named_barrier_sync(1, 64);
  });
}
inline void warp_diverges(bool wrong) {
  launch({}, [=] {
    uint32_t r[4];
    if (wrong && first()) return __syncwarp();
    ldmatrix_x4(r, emu::dynamic_shared());
  });
}
inline void rows_misaligned(bool wrong) {
  launch({}, [=] {
    uint32_t r[4];
    ldmatrix_x4(r, emu::dynamic_shared() + (wrong ? 8 : 16));
  });
}
inline void arrival_at_an_ended_cta(bool wrong) {
  launch({32, 2}, [=] {
    init_barrier();
    cluster_sync();
    if (cluster_rank() == 1) {
      if (first()) mbarrier_arrive_cluster(map_to_rank(barrier(), 0));
    } else if (!wrong) {
      mbarrier_wait(barrier(), 0);
    }
  });
}
inline void multicast_into_an_ended_cta(bool wrong) {
  launch({32, 2}, [=] {
    init_barrier();
    if (first()) mbarrier_expect(barrier(), 1024);
    cluster_sync();
    if (cluster_rank() == 0 && first()) tma_load_multicast(tile(), &box, barrier(), 0, 0, 3);
    if (!wrong || cluster_rank() == 0) mbarrier_wait(barrier(), 0);
    if (!wrong) cluster_sync();
  });
}
inline void multicast_out_of_the_cluster(bool wrong) {
  launch({32, 2}, [=] {
    init_barrier();
    if (first()) mbarrier_expect(barrier(), 1024);
    cluster_sync();
    if (cluster_rank() == 0 && first()) tma_load_multicast(tile(), &box, barrier(), 0, 0, wrong ? 5 : 3);
    mbarrier_wait(barrier(), 0);
  });
}

}  // namespace aim_fast::probe
