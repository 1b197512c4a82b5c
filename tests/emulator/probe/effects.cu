// What kernels see that the emulator makes visible, and what of the CUDA language it provides.
#include <algorithm>
#include <cstring>

#include "common.h"

using namespace aim_fast::probe;

// What a kernel sees that looks too early: an accumulator before its wait, the destination of cp.async, the source of
// a TMA store that is changed under it (as stored), and shared memory that nobody wrote.
AIM_PROBE aim_probe_too_early(float* accumulator, float* copied, float* stored, float* fresh) {
  return told([&] {
    std::fill_n(matrix, 64 * 64, 0);
    launch({128}, [=] {
      *fresh = *reinterpret_cast<float*>(emu::dynamic_shared() + 6000);
      load_tiles();
      float sums[16] = {};
      wgmma_fence();
      multiply(sums);
      wgmma_commit();
      if (first()) *accumulator = sums[0];
      wgmma_wait<0>();
      __syncthreads();
      if (!first()) return;
      float* row = reinterpret_cast<float*>(emu::dynamic_shared() + 4096);
      cp_async_16(row, matrix);
      cp_async_commit();
      *copied = *row;
      cp_async_wait<0>();
      tma_store(&box, tile(), 0, 8);
      bulk_commit();
      *reinterpret_cast<float*>(emu::dynamic_shared()) = 2.f;
      bulk_wait_read<0>();
      memcpy(stored, matrix + 8 * 64, 4);
    });
    return 0;
  });
}

// Several CTAs with a static array: out [4, 64] = what the opposite thread of the CTA wrote.
AIM_PROBE aim_probe_static_shared(int* out) {
  return told([&] {
    emu::launch(dim3(4), dim3(64), dim3(1), 0, [=] {
      __shared__ int exchanged[64];
      exchanged[threadIdx.x] = int(blockIdx.x * 100 + threadIdx.x);
      __syncthreads();
      out[blockIdx.x * 64 + threadIdx.x] = exchanged[63 - threadIdx.x];
    });
    return 0;
  });
}

// Shuffles: out [3, 32] of lane numbers, by index (lane + 3), xor 5 and down 4.
AIM_PROBE aim_probe_shuffles(int* out) {
  return told([&] {
    launch({}, [=] {
      const int lane = int(threadIdx.x);
      out[lane] = __shfl_sync(~0u, lane, lane + 3);
      out[32 + lane] = __shfl_xor_sync(~0u, lane, 5);
      out[64 + lane] = __shfl_down_sync(~0u, lane, 4);
    });
    return 0;
  });
}

// A box of 8 rows of `columns` 16-bit numbers with each swizzle: out [8, columns] in the order of shared memory.
AIM_PROBE aim_probe_swizzle(int mode, int columns, const uint16_t* from, uint16_t* out) {
  return told([&] {
    const TensorMap map{reinterpret_cast<uint8_t*>(const_cast<uint16_t*>(from)),
                        {uint64_t(columns), 8},
                        uint64_t(columns) * 2,
                        {uint32_t(columns), 8},
                        2,
                        uint32_t(mode)};
    launch({}, [=] {
      init_barrier();
      if (first()) {
        mbarrier_expect(barrier(), columns * 16);
        tma_load(tile(), &map, barrier(), 0, 0);
      }
      mbarrier_wait(barrier(), 0);
      if (first()) memcpy(out, emu::dynamic_shared(), columns * 16);
    });
    return 0;
  });
}
