// TMA: boxes of a matrix between global and shared memory, laid down as the tensor map says; sm_90. One thread issues
// each. x counts columns and y rows; what lies outside of the matrix reads as zero and is not written. The tile in
// shared memory is aligned to 128 bytes, with the 128-byte swizzle to 1024. Included by cuda/ptx.h alone.
#pragma once

namespace aim_fast::ptx {

// How long L2 is to keep what a copy passes through it.
enum class Keep { kNormal, kFirst, kLast };  // evicted in its turn, first, last

#ifdef __CUDACC__
// The text of an instruction with a policy: createpolicy, and the cache hint.
#define AIM_WITH_POLICY(PRIORITY, INSTRUCTION, OPERANDS)                                        \
  "{.reg .b64 policy;\ncreatepolicy.fractional.L2::" PRIORITY ".b64 policy, 1.0;\n" INSTRUCTION \
  ".L2::cache_hint " OPERANDS ", policy;}"
#define AIM_KEPT(KEEP, INSTRUCTION, OPERANDS, ...)                                               \
  if constexpr (KEEP == Keep::kFirst) {                                                          \
    asm volatile(AIM_WITH_POLICY("evict_first", INSTRUCTION, OPERANDS)::__VA_ARGS__ : "memory"); \
  } else if constexpr (KEEP == Keep::kLast) {                                                    \
    asm volatile(AIM_WITH_POLICY("evict_last", INSTRUCTION, OPERANDS)::__VA_ARGS__ : "memory");  \
  } else {                                                                                       \
    asm volatile(INSTRUCTION " " OPERANDS ";" ::__VA_ARGS__ : "memory");                         \
  }
#endif

// cp.async.bulk.tensor: loads a box; its bytes count for `barrier`, whose phase must expect them.
template <Keep kKeep = Keep::kNormal>
AIM_DEVICE void tma_load(uint32_t dst, const TensorMap* map, uint32_t barrier, int x, int y) {
#ifdef __CUDACC__
  AIM_KEPT(kKeep, "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes",
           "[%0], [%1, {%3, %4}], [%2]", "r"(dst), "l"(map), "r"(barrier), "r"(x), "r"(y))
#else
  emu::issue_tma_load(dst, map, barrier, x, y);
#endif
}

// cp.async.bulk.tensor.multicast::cluster: the same into every CTA of `mask`, at the same offset there, its bytes
// counting for each one's own barrier.
template <Keep kKeep = Keep::kNormal>
AIM_DEVICE void tma_load_multicast(uint32_t dst, const TensorMap* map, uint32_t barrier, int x, int y, uint16_t mask) {
#ifdef __CUDACC__
  AIM_KEPT(kKeep, "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster",
           "[%0], [%1, {%3, %4}], [%2], %5", "r"(dst), "l"(map), "r"(barrier), "r"(x), "r"(y), "h"(mask))
#else
  emu::issue_tma_multicast(dst, map, barrier, x, y, mask);
#endif
}

// cp.async.bulk.tensor, to global: stores a box. Ordinary writes to src need fence_proxy_async and a barrier before.
template <Keep kKeep = Keep::kNormal>
AIM_DEVICE void tma_store(const TensorMap* map, uint32_t src, int x, int y) {
#ifdef __CUDACC__
  AIM_KEPT(kKeep, "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group", "[%0, {%2, %3}], [%1]", "l"(map), "r"(src),
           "r"(x), "r"(y))
#else
  emu::issue_tma_store(map, src, x, y);
#endif
}

// cp.async.bulk.commit_group: this thread's stores since the last one become a group.
AIM_DEVICE void bulk_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#else
  emu::bulk_commit();
#endif
}

// cp.async.bulk.wait_group.read: until at most the N youngest groups of this thread still read their source.
template <int N>
AIM_DEVICE void bulk_wait_read() {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
#else
  emu::bulk_wait_read(N);
#endif
}

// fence.proxy.async: this thread's ordinary accesses to shared memory before it are seen by TMA and wgmma after it.
AIM_DEVICE void fence_proxy_async() {
#ifdef __CUDACC__
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  emu::fence_proxy_async();
#endif
}

}  // namespace aim_fast::ptx
