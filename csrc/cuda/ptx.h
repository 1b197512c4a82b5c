// Every PTX instruction the kernels use, behind one small function each: inline PTX on the GPU, emulation on the CPU.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>
#ifdef __CUDACC__
#include <cuda.h>
#define AIM_DEVICE __device__ __forceinline__
#define AIM_GRID_CONSTANT __grid_constant__
#define AIM_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) uint8_t name[]
#else
#include <algorithm>
#include <memory>

#include "emulator.h"
#define AIM_DEVICE inline
#define AIM_GRID_CONSTANT
#define AIM_DYNAMIC_SHARED(name) uint8_t* name = emu::cur->cta->smem
#endif
namespace aim_fast::ptx {

using BFloat16 = __nv_bfloat16;
using Half = __half;
#ifdef __CUDACC__
using TensorMap = CUtensorMap;
#else
using TensorMap = emu::TensorMap;
#endif
AIM_DEVICE uint32_t shared_address(const void* p) {
#ifdef __CUDACC__
  return (uint32_t)__cvta_generic_to_shared(p);
#else
  return emu::smem_u32(p);
#endif
}
// ---------------- sm_80
AIM_DEVICE void cp_async_16(void* dst, const void* src, bool pred = true) {  // zero fill when !pred
#ifdef __CUDACC__
  int n = pred ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(dst)), "l"(src), "r"(n) : "memory");
#else
  if (((uintptr_t)dst | (uintptr_t)src) & 15) emu::fail("cp.async: not 16-byte aligned");
  auto f = [=] {
    if (pred)
      memcpy(dst, src, 16);
    else
      memset(dst, 0, 16);
  };
  if (emu::cfg.async == emu::EAGER)
    f();
  else
    emu::cur->cp_open.push_back(f);
#endif
}
AIM_DEVICE void cp_async_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  auto* f = emu::cur;
  f->cp_groups.push_back(std::move(f->cp_open));
  f->cp_open.clear();
#endif
}
template <int N>
AIM_DEVICE void cp_async_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#else
  emu::run_groups(emu::cur->cp_groups, N);
#endif
}
AIM_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* p) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p))
               : "memory");
#else
  struct A {
    uint32_t* r;
    const uint8_t* p;
  } a{r, (const uint8_t*)p};
  if ((uintptr_t)p & 15) emu::fail("ldmatrix: row not 16-byte aligned");
  emu::warp_collective("ldmatrix.x4", &a, [](void** v) {
    for (int m = 0; m < 4; m++)
      for (int l = 0; l < 32; l++) memcpy(&((A*)v[l])->r[m], ((A*)v[m * 8 + l / 4])->p + (l % 4) * 4, 4);
  });
#endif
}
// The same with each 8 x 8 matrix transposed.
AIM_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* p) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p))
               : "memory");
#else
  struct A {
    uint32_t* r;
    const uint8_t* p;
  } a{r, (const uint8_t*)p};
  if ((uintptr_t)p & 15) emu::fail("ldmatrix: row not 16-byte aligned");
  emu::warp_collective("ldmatrix.x4.trans", &a, [](void** v) {
    for (int m = 0; m < 4; m++)
      for (int l = 0; l < 32; l++)
        for (int h = 0; h < 2; h++)
          memcpy((uint8_t*)&((A*)v[l])->r[m] + 2 * h, ((A*)v[m * 8 + l % 4 * 2 + h])->p + l / 4 * 2, 2);
  });
#endif
}
AIM_DEVICE void stmatrix_x4(void* p, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
#ifdef __CUDACC__
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(p)), "r"(r0),
               "r"(r1), "r"(r2), "r"(r3)
               : "memory");
#else
  struct A {
    uint32_t r[4];
    uint8_t* p;
  } a{{r0, r1, r2, r3}, (uint8_t*)p};
  if ((uintptr_t)p & 15) emu::fail("stmatrix: row not 16-byte aligned");
  emu::warp_collective("stmatrix.x4", &a, [](void** v) {
    for (int m = 0; m < 4; m++)
      for (int l = 0; l < 32; l++) memcpy(((A*)v[m * 8 + l / 4])->p + (l % 4) * 4, &((A*)v[l])->r[m], 4);
  });
  emu::mark_generic(p, 16);
#endif
}
// d [16, 8] += a [16, 16] b [16, 8], all in the fragments of mma.m16n8k16.
template <class T>
AIM_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef __CUDACC__
  if constexpr (std::is_same_v<T, BFloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#else
  struct M {
    float* d;
    const uint32_t* a;
    uint32_t b[2];
  } m{d, a, {b0, b1}};
  emu::warp_collective("mma.m16n8k16", &m, [](void** v) {
    emu::stats.mma++;
    float A[16][16], B[16][8];
    for (int l = 0; l < 32; l++) {
      auto* x = (M*)v[l];
      int g = l / 4, t = l % 4;
      for (int i = 0; i < 4; i++)
        for (int h = 0; h < 2; h++) A[g + 8 * (i & 1)][t * 2 + h + 8 * (i >> 1)] = emu::value<T>(x->a[i] >> (16 * h));
      for (int i = 0; i < 2; i++)
        for (int h = 0; h < 2; h++) B[t * 2 + h + 8 * i][g] = emu::value<T>(x->b[i] >> (16 * h));
    }
    float D[16][8] = {};
    for (int r = 0; r < 16; r++)
      for (int k = 0; k < 16; k++)
        for (int n = 0; n < 8; n++) D[r][n] += A[r][k] * B[k][n];
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < 4; i++) ((M*)v[l])->d[i] += D[l / 4 + (i & 2 ? 8 : 0)][(l % 4) * 2 + (i & 1)];
  });
#endif
}
// Two fp32 rounded to T, the first in the low half.
template <class T>
AIM_DEVICE uint32_t pack(float lo, float hi) {
  uint32_t u;
  if constexpr (std::is_same_v<T, BFloat16>) {
    __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
    memcpy(&u, &v, 4);
  } else {
    __half2 v = __floats2half2_rn(lo, hi);
    memcpy(&u, &v, 4);
  }
  return u;
}
// The halves of a pair of T.
template <class T>
AIM_DEVICE float low(uint32_t v) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    uint32_t u = v << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
  } else {
    uint16_t u = (uint16_t)v;
    __half h;
    memcpy(&h, &u, 2);
    return __half2float(h);
  }
}
template <class T>
AIM_DEVICE float high(uint32_t v) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    uint32_t u = v & 0xffff0000u;
    float f;
    memcpy(&f, &u, 4);
    return f;
  } else {
    uint16_t u = (uint16_t)(v >> 16);
    __half h;
    memcpy(&h, &u, 2);
    return __half2float(h);
  }
}
// ---------------- sm_90
AIM_DEVICE void mbarrier_init(uint32_t a, uint32_t n) {
#ifdef __CUDACC__
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(a), "r"(n) : "memory");
#else
  uint64_t v = emu::mb_pack(n, n, 0, 0);
  memcpy(emu::smem_ptr(a, 8), &v, 8);
#endif
}
AIM_DEVICE void fence_mbarrier_init() {
#ifdef __CUDACC__
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
AIM_DEVICE void mbarrier_expect(uint32_t a, uint32_t bytes) {  // arrive.expect_tx
#ifdef __CUDACC__
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(a), "r"(bytes) : "memory");
#else
  emu::mb_update(a, 1, bytes);
#endif
}
AIM_DEVICE void mbarrier_arrive(uint32_t a) {
#ifdef __CUDACC__
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(a) : "memory");
#else
  emu::mb_update(a, 1, 0);
#endif
}
AIM_DEVICE uint32_t map_to_rank(uint32_t a, uint32_t rank) {
#ifdef __CUDACC__
  uint32_t r;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(rank));
  return r;
#else
  return (a & 0xffffff) | rank << 24;
#endif
}
// a from map_to_rank. Not .release.cluster: that costs a MEMBAR.ALL.GPU each time; reads of a stage are complete when
// they return, as CUTLASS assumes too
AIM_DEVICE void mbarrier_arrive_cluster(uint32_t a) {
#ifdef __CUDACC__
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(a) : "memory");
#else
  emu::mb_update(a, 1, 0);
#endif
}
AIM_DEVICE void mbarrier_wait(uint32_t a, uint32_t parity) {
#ifdef __CUDACC__
  asm volatile(
      "{\n.reg .pred p;\nW: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra D;\nbra W;\nD:\n}" ::"r"(a),
      "r"(parity)
      : "memory");
#else
  emu::mb_wait(a, parity);
#endif
}
AIM_DEVICE void tma_load(uint32_t dst, const TensorMap* t, uint32_t bar, int x, int y) {
#ifdef __CUDACC__
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          dst),
      "l"(t), "r"(bar), "r"(x), "r"(y)
      : "memory");
#else
  emu::tma_load_2d(dst, t, bar, x, y, 0, false);
#endif
}
AIM_DEVICE void tma_load_multicast(uint32_t dst, const TensorMap* t, uint32_t bar, int x, int y, uint16_t mask) {
#ifdef __CUDACC__
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, "
      "%4}], [%2], %5;" ::"r"(dst),
      "l"(t), "r"(bar), "r"(x), "r"(y), "h"(mask)
      : "memory");
#else
  emu::tma_load_2d(dst, t, bar, x, y, mask, true);
#endif
}
AIM_DEVICE void tma_store(const TensorMap* t, uint32_t src, int x, int y) {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(t), "r"(src), "r"(x),
               "r"(y)
               : "memory");
#else
  emu::tma_store_2d(t, src, x, y);
#endif
}
AIM_DEVICE void bulk_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#else
  auto* f = emu::cur;
  f->bulk_groups.push_back(std::move(f->bulk_open));
  f->bulk_open.clear();
#endif
}
template <int N>
AIM_DEVICE void bulk_wait_read() {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
#else
  emu::run_groups(emu::cur->bulk_groups, N);
#endif
}
AIM_DEVICE void fence_proxy_async() {
#ifdef __CUDACC__
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  emu::fence_proxy_async();
#endif
}
AIM_DEVICE void named_barrier_sync(int id, int n) {
#ifdef __CUDACC__
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory");
#else
  emu::bar_sync(emu::cur->cta->bar[id], n, "bar.sync");
#endif
}
AIM_DEVICE void named_barrier_arrive(int id, int n) {
#ifdef __CUDACC__
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n) : "memory");
#else
  emu::bar_arrive(emu::cur->cta->bar[id], n);
#endif
}
AIM_DEVICE uint32_t cluster_rank() {
#ifdef __CUDACC__
  uint32_t r;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
#else
  return emu::cur->cta->rank;
#endif
}
AIM_DEVICE void cluster_sync() {
#ifdef __CUDACC__
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
#else
  emu::bar_sync(emu::ccl->bar, emu::nthreads() * emu::ccl->cta.size(), "barrier.cluster");
#endif
}
template <int N>
AIM_DEVICE void raise_registers() {
  static_assert(N % 8 == 0 && N >= 24 && N <= 256, "setmaxnreg");
#ifdef __CUDACC__
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
#endif
}
template <int N>
AIM_DEVICE void lower_registers() {
  static_assert(N % 8 == 0 && N >= 24 && N <= 256, "setmaxnreg");
#ifdef __CUDACC__
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#endif
}
// K-major tile, 128-byte swizzle, 8-row groups 1024 bytes apart
AIM_DEVICE uint64_t descriptor_k_major(uint32_t a) {
  return (uint64_t)((a & 0x3ffff) >> 4) | (1ull << 16) | ((uint64_t)(1024 >> 4) << 32) | (1ull << 62);
}
AIM_DEVICE void wgmma_fence() {
#ifdef __CUDACC__
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
  emu::wgmma_fence();
#endif
}
AIM_DEVICE void wgmma_commit() {
#ifdef __CUDACC__
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  emu::wgmma_commit();
#endif
}
template <int N>
AIM_DEVICE void wgmma_wait() {
#ifdef __CUDACC__
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
#else
  emu::wgmma_wait(N);
#endif
}
// MN-major tile, 128-byte swizzle: 64 mn by 8 k to an atom of 1024 bytes, atoms of successive k back to back, the next
// 64 mn `mn_block` bytes away (unused when the operand is 64 wide). One k step of 16 is 2048 bytes: +128 on the
// descriptor.
AIM_DEVICE uint64_t descriptor_mn_major(uint32_t a, uint32_t mn_block) {
  return (uint64_t)((a & 0x3ffff) >> 4) | ((uint64_t)(mn_block >> 4) << 16) | ((uint64_t)(1024 >> 4) << 32) |
         (1ull << 62);
}
// D[64, N] (+)= A[64, 16] B[16, N]; ss(d, descA, descB, scale_d), rs(d, a, descB, scale_d); TA, TB: that operand is
// MN-major
template <int N, class T, bool TA = false, bool TB = false>
struct Wgmma;
#ifdef __CUDACC__
#include "wgmma.h"
#else
template <int N, class T, bool TA, bool TB>
struct Wgmma {
  static void ss(float (&d)[N / 2], uint64_t a, uint64_t b, int s) {
    emu::wgmma<N, T, false, TA, TB>({d, nullptr, a, b, s});
  }
  static void rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int s) {
    emu::wgmma<N, T, true, TA, TB>({d, a, 0, b, s});
  }
};
#endif
AIM_DEVICE void tma_prefetch(const TensorMap* t, int x, int y) {  // global to L2
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(t), "r"(x), "r"(y) : "memory");
#endif
}
AIM_DEVICE float reciprocal(float v) {
#ifdef __CUDACC__
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
#else
  return 1.f / v;
#endif
}
AIM_DEVICE float exp2(float v) {
#ifdef __CUDACC__
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
#else
  return exp2f(v);
#endif
}
// The compiler may not move the use of an accumulator above the wait that makes it valid: call this after the wait.
template <int N>
AIM_DEVICE void wgmma_landed(float (&d)[N]) {
#ifdef __CUDACC__
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
#endif
}
// Registers that a wgmma in flight reads may not be written: call this after the wait that ends it, so that the compiler
// keeps other values out of them until then.
AIM_DEVICE void operand_read(uint32_t (&a)[4]) {
#ifdef __CUDACC__
  asm volatile("" : "+r"(a[0]), "+r"(a[1]), "+r"(a[2]), "+r"(a[3])::"memory");
#endif
}
// 4 or 8 aligned bytes in one access (memcpy would be taken for unaligned)
AIM_DEVICE uint32_t load32(const void* p) { return *static_cast<const uint32_t*>(p); }
AIM_DEVICE void store_float2(float* p, float a, float b) {
  float2 v{a, b};
  *reinterpret_cast<float2*>(p) = v;
}
}  // namespace aim_fast::ptx
