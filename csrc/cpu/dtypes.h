// Loads and stores of float32, bfloat16 and float16 as float vectors; rounding is to nearest, ties to even.
#pragma once

#include "vec.h"

namespace aim_fast::AIM_FAST_ISA {

AIM_FAST_INLINE Float from_bf16(Half v) { return (Float)(__builtin_convertvector(v, Uint) << 16); }

AIM_FAST_INLINE Half to_bf16(Float v) {
#if defined(__AVX512BF16__)
  return (Half)_mm512_cvtneps_pbh((__m512)v);
#else
  Uint u = (Uint)v;
  Uint rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  Uint nan = (u >> 16) | 0x40;
  return __builtin_convertvector((Uint)(v != v ? (Int)nan : (Int)rounded), Half);
#endif
}

AIM_FAST_INLINE Float from_f16(Half v) {
#if defined(__AVX512F__)
  return (Float)_mm512_cvtph_ps((__m256i)v);
#elif defined(__F16C__)
  return (Float)_mm256_cvtph_ps((__m128i)v);
#else
  // Shifting puts the exponent 112 too low; the product mends it, subnormals included.
  Uint u = __builtin_convertvector(v, Uint);
  Float magnitude = (Float)((u & 0x7fff) << 13) * 0x1p112f;
  Int special = (Int)(u & 0x7c00) == 0x7c00;
  Uint bits = (Uint)magnitude | ((Uint)special & 0x7f800000u);
  return (Float)(bits | ((u & 0x8000) << 16));
#endif
}

AIM_FAST_INLINE Half to_f16(Float v) {
#if defined(__AVX512F__)
  return (Half)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
  return (Half)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  Uint u = (Uint)v;
  Uint sign = (u >> 16) & 0x8000;
  Uint a = u & 0x7fffffff;
  // Normal results: round the low 13 bits away, then move the exponent. Smaller ones: the sum with 0.5 rounds at 2^-24.
  Uint normal = (a + 0xfff + ((a >> 13) & 1) - (112u << 23)) >> 13;
  Uint small = (Uint)((Float)a + 0.5f) - 0x3f000000u;
  Uint h = (Uint)((Int)a < (113 << 23) ? (Int)small : (Int)normal);
  h = (Uint)((Int)a >= 0x477ff000 ? (Int)(Uint{} + 0x7c00) : (Int)h);
  h = (Uint)((Int)a > 0x7f800000 ? (Int)(Uint{} + 0x7e00) : (Int)h);
  return __builtin_convertvector(h | sign, Half);
#endif
}

// A storage type: its element, and whole vectors of it as floats.
struct Float32 {
  using Element = float;
  static constexpr bool kIsBFloat16 = false;
  static AIM_FAST_INLINE Float load(const float* p) { return load_vector<Float>(p); }
  static AIM_FAST_INLINE void store(float* p, Float v) { store_vector(p, v); }
};
struct BFloat16 {
  using Element = uint16_t;
  static constexpr bool kIsBFloat16 = true;
  static AIM_FAST_INLINE Float load(const uint16_t* p) { return from_bf16(load_vector<Half>(p)); }
  static AIM_FAST_INLINE void store(uint16_t* p, Float v) { store_vector(p, to_bf16(v)); }
};
struct Float16 {
  using Element = uint16_t;
  static constexpr bool kIsBFloat16 = false;
  static AIM_FAST_INLINE Float load(const uint16_t* p) { return from_f16(load_vector<Half>(p)); }
  static AIM_FAST_INLINE void store(uint16_t* p, Float v) { store_vector(p, to_f16(v)); }
};

// Calls f with the storage type of a dtype.
template <class F>
AIM_FAST_INLINE void with_dtype(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::kFloat32:
      return f(Float32{});
    case Dtype::kBFloat16:
      return f(BFloat16{});
    case Dtype::kFloat16:
      return f(Float16{});
  }
}

// The first n lanes; the others are zero.
template <class S>
AIM_FAST_INLINE Float load_part(const typename S::Element* p, int64_t n) {
  if (n >= kLanes) return S::load(p);
  typename S::Element part[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) part[i] = p[i];
  return S::load(part);
}

template <class S>
AIM_FAST_INLINE void store_part(typename S::Element* p, Float v, int64_t n) {
  if (n >= kLanes) return S::store(p, v);
  typename S::Element part[kLanes];
  S::store(part, v);
  for (int64_t i = 0; i < n; ++i) p[i] = part[i];
}

// v as it is after a trip through the dtype.
AIM_FAST_INLINE Float rounded(Float v, Dtype dtype) {
  if (dtype == Dtype::kBFloat16) return from_bf16(to_bf16(v));
  if (dtype == Dtype::kFloat16) return from_f16(to_f16(v));
  return v;
}

}  // namespace aim_fast::AIM_FAST_ISA
