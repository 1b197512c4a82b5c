// Asynchronous copies of 16 bytes, and matrices spread over a warp: sm_80 and up, stmatrix from sm_90 on.
// Included by cuda/ptx.h alone.
#pragma once

namespace aim_fast::ptx {

// cp.async.cg: 16 bytes from global to shared memory past L1, or zeros when not `in_bounds` (src must still be a
// valid address). Both aligned to 16 bytes. Readable after commit, wait, and a barrier for other threads.
AIM_DEVICE void cp_async_16(void* dst, const void* src, bool in_bounds = true) {
#ifdef __CUDACC__
  const int bytes = in_bounds ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(dst)), "l"(src), "r"(bytes)
               : "memory");
#else
  emu::cp_async_16(dst, src, in_bounds);
#endif
}

// cp.async.commit_group: this thread's copies since the last one become a group, an empty one too.
AIM_DEVICE void cp_async_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emu::cp_async_commit();
#endif
}

// cp.async.wait_group: until at most the N youngest groups of this thread are unfinished.
template <int N>
AIM_DEVICE void cp_async_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#else
  emu::cp_async_wait(N);
#endif
}

// ldmatrix.x4: four 8 x 8 matrices of 16 bits; lane 8 i + j gives the address of row j of matrix i, aligned to 16
// bytes. Of matrix i lane l gets elements 2 (l % 4) and the next of row l / 4 in r[i].
AIM_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
#else
  emu::ldmatrix_x4(r, row, false);
#endif
}

// ldmatrix.x4.trans: the same of each matrix transposed.
AIM_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
#else
  emu::ldmatrix_x4(r, row, true);
#endif
}

// stmatrix.x4: the inverse of ldmatrix.x4. A fence_proxy_async must follow before TMA or wgmma reads what it wrote.
AIM_DEVICE void stmatrix_x4(void* row, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
#ifdef __CUDACC__
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(row)), "r"(r0),
               "r"(r1), "r"(r2), "r"(r3)
               : "memory");
#else
  emu::stmatrix_x4(row, r0, r1, r2, r3);
#endif
}

// mma.m16n8k16: d [16, 8] += a [16, 16] b [16, 8] in that instruction's fragments, a and b of T, d in fp32.
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
  emu::mma<T>(d, a, b0, b1);
#endif
}

}  // namespace aim_fast::ptx
