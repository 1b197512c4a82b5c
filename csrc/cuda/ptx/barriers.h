// Barriers of a CTA and of a cluster, and what threads of a CTA share out. Included by cuda/ptx.h alone.
#pragma once

namespace aim_fast::ptx {

// bar.sync (an alias of barrier.sync): waits until `threads` threads have come to barrier `id`, 1 to 15 (0 is
// __syncthreads). Whole warps only; all name the same count.
AIM_DEVICE void named_barrier_sync(int id, int threads) {
#ifdef __CUDACC__
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  emu::named_barrier_sync(id, threads);
#endif
}

// bar.arrive: counts for that barrier and does not wait.
AIM_DEVICE void named_barrier_arrive(int id, int threads) {
#ifdef __CUDACC__
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  emu::named_barrier_arrive(id, threads);
#endif
}

// griddepcontrol.wait: until the launch before this one has ended and what it wrote can be read; at once where this one
// began after that. Below sm_90 every launch does.
AIM_DEVICE void wait_for_launch_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// griddepcontrol.launch_dependents: once all CTAs have come here or ended, the next launch may begin if it is an early
// one, and do what is before its wait.
AIM_DEVICE void allow_next_launch() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// %cluster_ctarank: this CTA's place in its cluster.
AIM_DEVICE uint32_t cluster_rank() {
#ifdef __CUDACC__
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return emu::cluster_rank();
#endif
}

// barrier.cluster: every thread of every CTA of the cluster. A CTA whose memory others write or whose mbarriers they
// arrive at must not end before such a barrier.
AIM_DEVICE void cluster_sync() {
#ifdef __CUDACC__
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
#else
  emu::cluster_sync();
#endif
}

// mapa: the address in the CTA `rank` of the cluster that corresponds to `address` here.
AIM_DEVICE uint32_t map_to_rank(uint32_t address, uint32_t rank) {
#ifdef __CUDACC__
  uint32_t mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
#else
  return emu::map_to_rank(address, rank);
#endif
}

// setmaxnreg.inc: every warp of the warpgroup, before they part ways; waits until others have given enough back.
template <int N>
AIM_DEVICE void raise_registers() {
  static_assert(N % 8 == 0 && N >= 24 && N <= 256, "setmaxnreg");
#ifdef __CUDACC__
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

// setmaxnreg.dec: every warp of the warpgroup, before they part ways.
template <int N>
AIM_DEVICE void lower_registers() {
  static_assert(N % 8 == 0 && N >= 24 && N <= 256, "setmaxnreg");
#ifdef __CUDACC__
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

}  // namespace aim_fast::ptx
