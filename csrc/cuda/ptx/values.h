// Arithmetic and memory accesses of one thread. Included by cuda/ptx.h alone.
#pragma once

namespace aim_fast::ptx {

// cvt.rn.bf16x2.f32 and cvt.rn.f16x2.f32: two fp32 rounded to T, the first in the low half.
template <class T>
AIM_DEVICE uint32_t pack(float lo, float hi) {
  uint32_t bits;
  if constexpr (std::is_same_v<T, BFloat16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(lo, hi);
    memcpy(&bits, &pair, 4);
  } else {
    const __half2 pair = __floats2half2_rn(lo, hi);
    memcpy(&bits, &pair, 4);
  }
  return bits;
}

// The low half of a pair of T.
template <class T>
AIM_DEVICE float low(uint32_t pair) {
  float value;
  if constexpr (std::is_same_v<T, BFloat16>) {
    const uint32_t bits = pair << 16;  // bf16 is the upper half of an fp32
    memcpy(&value, &bits, 4);
  } else {
    const uint16_t bits = static_cast<uint16_t>(pair);
    __half half;
    memcpy(&half, &bits, 2);
    value = __half2float(half);
  }
  return value;
}

// The high half of a pair of T.
template <class T>
AIM_DEVICE float high(uint32_t pair) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    const uint32_t bits = pair & 0xffff0000u;
    float value;
    memcpy(&value, &bits, 4);
    return value;
  } else {
    return low<T>(pair >> 16);
  }
}

// rcp.approx.ftz.f32: one unit in the last place.
AIM_DEVICE float reciprocal(float v) {
#ifdef __CUDACC__
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
#else
  return 1.f / v;
#endif
}

// ex2.approx.ftz.f32: two units in the last place.
AIM_DEVICE float exp2(float v) {
#ifdef __CUDACC__
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
#else
  return exp2f(v);
#endif
}

// No instruction: the same value, of which the compiler does not know where it comes from. What is computed of it is
// computed after this, rather than at the kernel's start and kept in registers from there on.
AIM_DEVICE int computed_here(int v) {
#ifdef __CUDACC__
  asm volatile("" : "+r"(v));
#endif
  return v;
}

// ld.b32: 4 aligned bytes in one access (memcpy would be taken for unaligned).
AIM_DEVICE uint32_t load32(const void* p) { return *static_cast<const uint32_t*>(p); }

// prefetch.global.L2: the cache line at p, which must be valid.
AIM_DEVICE void prefetch_l2(const void* p) {
#ifdef __CUDACC__
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#else
  (void)*static_cast<const volatile char*>(p);
#endif
}

// st.v2.f32: 8 aligned bytes in one access.
AIM_DEVICE void store_float2(float* p, float a, float b) { *reinterpret_cast<float2*>(p) = float2{a, b}; }

}  // namespace aim_fast::ptx
