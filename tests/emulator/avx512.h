// The AVX-512 that csrc/cpu uses, on any x86 processor with AVX2: its kernels then run in tests where it is not there.
//
// Included ahead of all else (-include). The compiler's vector extensions do the arithmetic; what the kernels spell as
// intrinsics has its twin here, by Intel's Intrinsics Guide.
#pragma once

#include <immintrin.h>

#include <cstdint>

#define __AVX512F__ 1

#define _mm512_set1_ps emulated_set1_ps
#define _mm512_set1_epi32 emulated_set1_epi32
#define _mm512_load_si512 emulated_load
#define _mm512_cvtepu16_epi32 emulated_cvtepu16_epi32
#define _mm512_cvtph_ps emulated_cvtph_ps
#define _mm512_cvtps_ph emulated_cvtps_ph
#define _mm512_permutex2var_epi16 emulated_permutex2var_epi16

namespace {

typedef float Floats16 __attribute__((vector_size(64)));
typedef uint32_t Words16 __attribute__((vector_size(64)));
typedef uint16_t Halves16 __attribute__((vector_size(32)));
typedef uint16_t Halves32 __attribute__((vector_size(64)));

inline __m512 emulated_set1_ps(float v) { return (__m512)(v - Floats16{}); }
inline __m512i emulated_set1_epi32(int v) { return (__m512i)(static_cast<uint32_t>(v) + Words16{}); }

inline __m512i emulated_load(const void* from) {
  __m512i v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

inline __m512i emulated_cvtepu16_epi32(__m256i v) { return (__m512i) __builtin_convertvector((Halves16)v, Words16); }

inline __m512 emulated_cvtph_ps(__m256i v) {
  __m256 half[2];
  for (int i = 0; i < 2; ++i) half[i] = _mm256_cvtph_ps(reinterpret_cast<const __m128i_u*>(&v)[i]);
  __m512 all;
  __builtin_memcpy(&all, half, sizeof all);
  return all;
}

inline __m256i emulated_cvtps_ph(__m512 v, int) {
  __m128i half[2];
  for (int i = 0; i < 2; ++i) {
    half[i] = _mm256_cvtps_ph(reinterpret_cast<const __m256_u*>(&v)[i], _MM_FROUND_TO_NEAREST_INT);
  }
  __m256i all;
  __builtin_memcpy(&all, half, sizeof all);
  return all;
}

inline __m512i emulated_permutex2var_epi16(__m512i a, __m512i places, __m512i b) {
  const Halves32 of[2] = {(Halves32)a, (Halves32)b}, place = (Halves32)places;
  Halves32 all;
  for (int i = 0; i < 32; ++i) all[i] = of[place[i] / 32 % 2][place[i] % 32];
  return (__m512i)all;
}

}  // namespace
