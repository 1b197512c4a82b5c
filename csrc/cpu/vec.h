// Vectors of one instruction set, on the compilers' vector extensions: arithmetic is the plain operators.
//
// Every file here is compiled once per instruction set, with AIM_FAST_ISA (the namespace) and AIM_FAST_VECTOR_BYTES set
// by the isa_*.cpp that includes it. Nothing of the standard library is instantiated here: a template shared between
// instruction sets would be merged by the linker, and an old processor would run the new one's code.
#pragma once

#include <cstdint>

#include "../common/params.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define AIM_FAST_INLINE inline __attribute__((always_inline))
#define AIM_FAST_UNROLL _Pragma("GCC unroll 16")

namespace aim_fast::AIM_FAST_ISA {

constexpr int kLanes = AIM_FAST_VECTOR_BYTES / 4;

typedef float Float __attribute__((vector_size(AIM_FAST_VECTOR_BYTES)));
typedef int32_t Int __attribute__((vector_size(AIM_FAST_VECTOR_BYTES)));
typedef uint32_t Uint __attribute__((vector_size(AIM_FAST_VECTOR_BYTES)));
typedef uint16_t Half __attribute__((vector_size(AIM_FAST_VECTOR_BYTES / 2)));  // 16-bit storage, either format

template <class T>
constexpr T least(T a, T b) {
  return b < a ? b : a;
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Spelled out, since Float{} + v is an addition that no compiler may drop: 10 % of the fp32 forward (Zen 4).
AIM_FAST_INLINE Float splat(float v) {
#if defined(__AVX512F__)
  return (Float)_mm512_set1_ps(v);
#elif defined(__AVX2__)
  return (Float)_mm256_set1_ps(v);
#else
  return Float{v, v, v, v};
#endif
}

AIM_FAST_INLINE Float select(Int mask, Float yes, Float no) { return mask ? yes : no; }

template <class Vec, class T>
AIM_FAST_INLINE Vec load_vector(const T* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class T, class Vec>
AIM_FAST_INLINE void store_vector(T* p, Vec v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// Two vectors seen as one sequence a b: the lanes of the lower and of the upper halves, interleaved.
#if defined(__clang__)
template <int... I>
struct Lanes {};
template <int N, int... I>
struct MakeLanes : MakeLanes<N - 1, N - 1, I...> {};
template <int... I>
struct MakeLanes<0, I...> {
  using type = Lanes<I...>;
};
template <class Vec, int... I>
AIM_FAST_INLINE Vec zip(Vec a, Vec b, int, Lanes<I...>, bool high) {
  constexpr int n = sizeof...(I);
  return high ? __builtin_shufflevector(a, b, (n / 2 + I / 2 + (I % 2) * n)...)
              : __builtin_shufflevector(a, b, (I / 2 + (I % 2) * n)...);
}
template <class Vec>
AIM_FAST_INLINE Vec zip_low(Vec a, Vec b) {
  return zip(a, b, 0, typename MakeLanes<kLanes>::type{}, false);
}
template <class Vec>
AIM_FAST_INLINE Vec zip_high(Vec a, Vec b) {
  return zip(a, b, 0, typename MakeLanes<kLanes>::type{}, true);
}
#else
AIM_FAST_INLINE Int zip_lanes(int first) {
  Int lanes{};
  AIM_FAST_UNROLL
  for (int i = 0; i < kLanes; ++i) lanes[i] = first + i / 2 + (i % 2) * kLanes;
  return lanes;
}
template <class Vec>
AIM_FAST_INLINE Vec zip_low(Vec a, Vec b) {
  return __builtin_shuffle(a, b, zip_lanes(0));
}
template <class Vec>
AIM_FAST_INLINE Vec zip_high(Vec a, Vec b) {
  return __builtin_shuffle(a, b, zip_lanes(kLanes / 2));
}
#endif

// Transposes kLanes x kLanes 32-bit values in place: log2(kLanes) perfect shuffles of the whole sequence.
template <class Vec>
AIM_FAST_INLINE void transpose(Vec (&v)[kLanes]) {
  AIM_FAST_UNROLL
  for (int width = 1; width < kLanes; width *= 2) {
    Vec t[kLanes];
    AIM_FAST_UNROLL
    for (int i = 0; i < kLanes / 2; ++i) {
      t[2 * i] = zip_low(v[i], v[i + kLanes / 2]);
      t[2 * i + 1] = zip_high(v[i], v[i + kLanes / 2]);
    }
    AIM_FAST_UNROLL
    for (int i = 0; i < kLanes; ++i) v[i] = t[i];
  }
}

}  // namespace aim_fast::AIM_FAST_ISA
