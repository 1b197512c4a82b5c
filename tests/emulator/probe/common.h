// What the probes of the emulator share: a small launch, an mbarrier, tiles of zeros.
#pragma once

#include "cuda/ptx.h"
#include "probe.h"

namespace aim_fast::probe {

using namespace ptx;  // what is tried out here are its functions

struct Launch {
  unsigned threads = 32, cluster = 1;
  size_t shared = 8192;
};
template <class Body>
inline void launch(const Launch& with, Body&& body) {
  emu::launch(dim3(with.cluster), dim3(with.threads), dim3(with.cluster), with.shared, body);
}

// 64 rows of 64 numbers of 16 bits in boxes of `rows`.
alignas(128) inline uint16_t matrix[64 * 64];
inline TensorMap boxes(uint32_t rows) { return {reinterpret_cast<uint8_t*>(matrix), {64, 64}, 128, {64, rows}, 2, 1}; }
inline const TensorMap box = boxes(8);  // of 1024 bytes

constexpr uint32_t kBarrier = 8000;  // offset of an mbarrier
inline uint32_t barrier() { return shared_address(emu::dynamic_shared() + kBarrier); }
inline uint32_t tile(uint32_t offset = 0) { return shared_address(emu::dynamic_shared() + offset); }
inline bool first() { return threadIdx.x == 0; }

inline void init_barrier(uint32_t count = 1) {
  if (first()) {
    mbarrier_init(barrier(), count);
    fence_mbarrier_init();
  }
  __syncthreads();
}
// What wgmma and TMA stores may read: zeros that TMA brought.
inline void load_tiles() {
  init_barrier();
  if (first()) {
    mbarrier_expect(barrier(), 4096);
    for (int i = 0; i < 4; ++i) tma_load(tile(i * 1024), &box, barrier(), 0, 0);
  }
  mbarrier_wait(barrier(), 0);
}
inline void store_matrix(uint32_t offset) {
  stmatrix_x4(emu::dynamic_shared() + offset + threadIdx.x % 32 * 16, 0, 0, 0, 0);
}
inline void multiply(float (&sums)[16], uint32_t offset = 0) {
  Wgmma<32, BFloat16>::ss(sums, descriptor_k_major(tile()), descriptor_k_major(tile(offset)), 0);
}

}  // namespace aim_fast::probe
