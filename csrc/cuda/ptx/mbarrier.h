// mbarriers: 8 aligned bytes of shared memory that count arrivals and bytes; sm_90. A phase completes when both counts
// are met, and the next one begins. Included by cuda/ptx.h alone.
#pragma once

namespace aim_fast::ptx {

// mbarrier.init: `count` arrivals complete a phase. One thread; fence_mbarrier_init and a barrier before any use.
AIM_DEVICE void mbarrier_init(uint32_t barrier, uint32_t count) {
#ifdef __CUDACC__
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
#else
  emu::mbarrier_init(barrier, count);
#endif
}

// fence.mbarrier_init: the thread's inits become visible to TMA and to the cluster (which then needs cluster_sync).
AIM_DEVICE void fence_mbarrier_init() {
#ifdef __CUDACC__
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
  emu::fence_mbarrier_init();
#endif
}

// mbarrier.arrive.expect_tx: one arrival, and the phase also waits for `bytes` more bytes of TMA.
AIM_DEVICE void mbarrier_expect(uint32_t barrier, uint32_t bytes) {
#ifdef __CUDACC__
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
#else
  emu::mbarrier_arrive(barrier, bytes);
#endif
}

// mbarrier.arrive: one arrival.
AIM_DEVICE void mbarrier_arrive(uint32_t barrier) {
#ifdef __CUDACC__
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
#else
  emu::mbarrier_arrive(barrier, 0);
#endif
}

// mbarrier.arrive at an address of map_to_rank. Not .release.cluster: that costs a MEMBAR.ALL.GPU each time; reads of a
// stage are complete when they return, as CUTLASS assumes too.
AIM_DEVICE void mbarrier_arrive_cluster(uint32_t barrier) {
#ifdef __CUDACC__
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
#else
  emu::mbarrier_arrive(barrier, 0);
#endif
}

// mbarrier.try_wait.parity: until the phase of that parity has completed; phases count from 0. Of a fresh barrier the
// phase before the first, of parity 1, counts as completed.
AIM_DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity) {
#ifdef __CUDACC__
  asm volatile(
      "{\n.reg .pred p;\nW: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra D;\nbra W;\nD:\n}" ::"r"(
          barrier),
      "r"(parity)
      : "memory");
#else
  emu::mbarrier_wait(barrier, parity);
#endif
}

}  // namespace aim_fast::ptx
