// wgmma: asynchronous products of a warpgroup, four warps from a multiple of four on; sm_90a. Included by cuda/ptx.h
// alone.
#pragma once

namespace aim_fast::ptx {

// wgmma.fence: before the first wgmma, and again whenever a thread has touched an accumulator or fragment since.
AIM_DEVICE void wgmma_fence() {
#ifdef __CUDACC__
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
  emu::wgmma_fence();
#endif
}

// wgmma.commit_group: the products since the last one become a group.
AIM_DEVICE void wgmma_commit() {
#ifdef __CUDACC__
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  emu::wgmma_commit();
#endif
}

// wgmma.wait_group: until at most the N youngest groups are unfinished. Only then may their accumulators be touched and
// their operands in shared memory be written.
template <int N>
AIM_DEVICE void wgmma_wait() {
#ifdef __CUDACC__
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
#else
  emu::wgmma_wait(N);
#endif
}

// No instruction: the compiler may not move the use of an accumulator above the wait that makes it valid. Call this
// after the wait.
template <int N>
AIM_DEVICE void wgmma_landed([[maybe_unused]] float (&d)[N]) {
#ifdef __CUDACC__
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
#endif
}

// Asynchronous Warpgroup Level Matrix Shared Memory Layout, Matrix Descriptor: start, strides, swizzle.
namespace descriptor {
constexpr uint64_t kSwizzle128 = 1ull << 62;
AIM_DEVICE uint64_t bytes(uint64_t count) { return (count & 0x3ffff) >> 4; }  // in units of 16, 14 bits
AIM_DEVICE uint64_t make(uint32_t start, uint32_t leading, uint32_t stride) {
  return bytes(start) | bytes(leading) << 16 | bytes(stride) << 32 | kSwizzle128;
}
}  // namespace descriptor

// A K-major tile with the 128-byte swizzle: rows of 64 k, groups of 8 rows 1024 bytes apart. One k step of 16 is 32
// bytes: + 2 on the descriptor. Its leading distance is not used.
AIM_DEVICE uint64_t descriptor_k_major(uint32_t tile) { return descriptor::make(tile, 16, 1024); }

// An MN-major tile with the 128-byte swizzle: 64 mn by 8 k to an atom of 1024 bytes, atoms of successive k back to
// back, the next 64 mn `mn_block` bytes away (unused when the operand is 64 wide). One k step of 16 is 2048 bytes: +
// 128 on the descriptor.
AIM_DEVICE uint64_t descriptor_mn_major(uint32_t tile, uint32_t mn_block) {
  return descriptor::make(tile, mn_block, 1024);
}

// wgmma.mma_async.m64nNk16: d [64, N] = a [64, 16] b [16, N] + (keep ? d : 0). ss(d, a, b, keep): both operands in
// shared memory, by descriptors; rs(d, a, b, keep): a in registers, in the fragments of mma.m16n8k16 with 16 rows to a
// warp. TA, TB: that operand is MN-major in shared memory.
template <int N, class T, bool TA = false, bool TB = false>
struct Wgmma;

#ifdef __CUDACC__
#include "cuda/wgmma.h"
#else
template <int N, class T, bool TA, bool TB>
struct Wgmma {
  static void ss(float (&d)[N / 2], uint64_t a, uint64_t b, int keep) {
    emu::wgmma<N, T, TA, TB>(d, nullptr, a, b, keep);
  }
  static void rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int keep) {
    emu::wgmma<N, T, false, TB>(d, a, 0, b, keep);
  }
};
#endif

}  // namespace aim_fast::ptx
