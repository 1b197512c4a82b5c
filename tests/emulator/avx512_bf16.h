// AVX-512-BF16 beside avx512.h, which see. Its instructions take numbers under 2^-126 for zero, and give zero for them;
// here of a sum of two products the end alone.
#pragma once

#include "avx512.h"

#define __AVX512BF16__ 1

#define __m512bh __m512i
#define _mm512_cvtneps_pbh emulated_cvtneps_pbh
#define _mm512_cvtne2ps_pbh emulated_cvtne2ps_pbh
#define _mm512_dpbf16_ps emulated_dpbf16_ps

namespace {

inline Floats16 flushed(Floats16 v) {
  return ((Words16)v & 0x7f800000u) == 0 ? (Floats16)((Words16)v & 0x80000000u) : v;
}
// The upper and the lower halves of pairs of bfloat16.
inline Floats16 upper_halves(Words16 pairs) { return flushed((Floats16)(pairs & 0xffff0000u)); }
inline Floats16 lower_halves(Words16 pairs) { return flushed((Floats16)(pairs << 16)); }

inline Halves16 rounded_to_bf16(Floats16 v) {
  const Words16 bits = (Words16)flushed(v), up = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nan = bits >> 16 | 0x40;
  return __builtin_convertvector(v != v ? nan : up, Halves16);
}

inline __m256i emulated_cvtneps_pbh(__m512 v) { return (__m256i)rounded_to_bf16((Floats16)v); }

inline __m512i emulated_cvtne2ps_pbh(__m512 second, __m512 first) {
  const Halves16 both[2] = {rounded_to_bf16((Floats16)first), rounded_to_bf16((Floats16)second)};
  __m512i all;
  __builtin_memcpy(&all, both, sizeof all);
  return all;
}

inline __m512 emulated_dpbf16_ps(__m512 sum, __m512i a, __m512i b) {
  const Words16 left = (Words16)a, right = (Words16)b;
  const Floats16 v = upper_halves(left) * upper_halves(right) + (Floats16)sum;
  return (__m512)flushed(lower_halves(left) * lower_halves(right) + v);
}

}  // namespace
