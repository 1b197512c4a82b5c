// Wrong uses of cp.async, TMA and the proxies.
#pragma once

#include "common.h"

namespace aim_fast::probe {

inline void store_without_proxy_fence(bool wrong) {
  launch({}, [=] {
    store_matrix(0), store_matrix(512);
    if (!wrong) fence_proxy_async();
    __syncwarp();
    if (!first()) return;
    tma_store(&box, tile(), 0, 0);
    bulk_commit();
    bulk_wait_read<0>();
  });
}
inline void wgmma_without_proxy_fence(bool wrong) {
  launch({128}, [=] {
    load_tiles();
    if (threadIdx.x < 32) store_matrix(0);
    if (!wrong || threadIdx.x >= 32) fence_proxy_async();  // another thread's does nothing for what this one wrote
    __syncthreads();
    float sums[16];
    wgmma_fence();
    multiply(sums);
    wgmma_commit();
    wgmma_wait<0>();
  });
}
inline void copy_read_before_wait(bool wrong) {
  launch({}, [=] {
    uint8_t* row = emu::dynamic_shared() + threadIdx.x * 16;
    cp_async_16(row, matrix);
    cp_async_commit();
    uint32_t r[4];
    if (!wrong) cp_async_wait<0>();
    __syncwarp();
    ldmatrix_x4(r, row);
    cp_async_wait<0>();
  });
}
inline void copy_misaligned(bool wrong) {
  launch({}, [=] {
    cp_async_16(emu::dynamic_shared() + threadIdx.x * 16 + (wrong ? 8 : 0), matrix);
    cp_async_commit();
    cp_async_wait<0>();
  });
}
inline void copy_not_committed(bool wrong) {
  launch({}, [=] {
    cp_async_16(emu::dynamic_shared() + threadIdx.x * 16, matrix);
    if (!wrong) cp_async_commit();
    cp_async_wait<0>();
  });
}
inline void load_misaligned(bool wrong) {
  launch({}, [=] {
    init_barrier();
    if (first()) {
      mbarrier_expect(barrier(), 1024);
      tma_load(tile(wrong ? 128 : 1024), &box, barrier(), 0, 0);
    }
    mbarrier_wait(barrier(), 0);
  });
}
inline void load_over_a_load(bool wrong) {
  launch({}, [=] {
    init_barrier();
    if (first()) {
      mbarrier_expect(barrier(), 2048);
      tma_load(tile(), &box, barrier(), 0, 0);
      tma_load(tile(wrong ? 0 : 1024), &box, barrier(), 0, 0);
    }
    mbarrier_wait(barrier(), 0);
  });
}
inline void load_read_before_wait(bool wrong) {
  launch({}, [=] {
    init_barrier();
    if (first()) {
      mbarrier_expect(barrier(), 1024);
      tma_load(tile(), &box, barrier(), 0, 0);
    }
    uint32_t r[4];
    if (!wrong) mbarrier_wait(barrier(), 0);
    __syncwarp();
    ldmatrix_x4(r, emu::dynamic_shared());
    mbarrier_wait(barrier(), 0);
  });
}
inline void load_past_the_end(bool wrong) {
  launch({}, [=] {
    init_barrier();
    if (first()) {
      const TensorMap larger = boxes(16);
      mbarrier_expect(barrier(), 2048);
      tma_load(tile(wrong ? 7168 : 4096), &larger, barrier(), 0, 0);
    }
    mbarrier_wait(barrier(), 0);
  });
}
inline void wrong_bytes(bool wrong, int by) {
  launch({}, [=] {
    init_barrier();
    if (first()) {
      mbarrier_expect(barrier(), 1024 + (wrong ? by : 0));
      tma_load(tile(), &box, barrier(), 0, 0);
    }
    mbarrier_wait(barrier(), 0);
  });
}
inline void load_of_fewer_bytes(bool wrong) { wrong_bytes(wrong, 16); }
inline void load_of_more_bytes(bool wrong) { wrong_bytes(wrong, -16); }
inline void load_in_flight_at_the_end(bool wrong) {
  launch({}, [=] {
    init_barrier();
    if (first()) {
      mbarrier_expect(barrier(), 1024);
      tma_load(tile(), &box, barrier(), 0, 0);
    }
    if (!wrong) mbarrier_wait(barrier(), 0);
  });
}
inline void store_source_overwritten(bool wrong) {
  launch({}, [=] {
    load_tiles();
    if (first()) {
      tma_store(&box, tile(), 0, 0);
      bulk_commit();
      if (!wrong) bulk_wait_read<0>();
    }
    __syncwarp();
    store_matrix(0);
    if (first()) bulk_wait_read<0>();
  });
}
inline void store_not_waited_for(bool wrong) {
  launch({}, [=] {
    load_tiles();
    if (!first()) return;
    tma_store(&box, tile(), 0, 0);
    bulk_commit();
    if (!wrong) bulk_wait_read<0>();
  });
}

}  // namespace aim_fast::probe
