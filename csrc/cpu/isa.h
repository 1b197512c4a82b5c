// One instruction set's kernels: included once by each isa_*.cpp, which sets AIM_FAST_ISA and AIM_FAST_VECTOR_BYTES.
#pragma once

#include "backward.h"
#include "forward.h"
#include "kernels.h"

namespace aim_fast::AIM_FAST_ISA {

inline void forward(const ForwardParams& p) {
#if defined(__AVX512BF16__)
  if (p.dtype == Dtype::kBFloat16) return Forward<BFloat16Operand>(p).run();
#endif
  Forward<FloatOperand>(p).run();
}

inline int64_t packed_bytes(const ForwardParams& p) {
#if defined(__AVX512BF16__)
  if (p.dtype == Dtype::kBFloat16) return Forward<BFloat16Operand>(p).packed_bytes();
#endif
  return Forward<FloatOperand>(p).packed_bytes();
}

inline void pack(const ForwardParams& p, char* out) {
#if defined(__AVX512BF16__)
  if (p.dtype == Dtype::kBFloat16) return Forward<BFloat16Operand>(p).pack(out);
#endif
  Forward<FloatOperand>(p).pack(out);
}

inline void backward(const BackwardParams& p) {
#if defined(__AVX512BF16__)
  if (p.dtype == Dtype::kBFloat16) return Backward<BFloat16Operand>(p).run();
#endif
  Backward<FloatOperand>(p).run();
}

// An in-out operand of inline assembly in any vector register.
#if defined(AIM_FAST_EMULATED)
#define AIM_FAST_REGISTER(v) "+m"(v)
#elif defined(__AVX512F__)
#define AIM_FAST_REGISTER(v) "+v"(v)
#elif defined(__x86_64__)
#define AIM_FAST_REGISTER(v) "+x"(v)
#elif defined(__aarch64__)
#define AIM_FAST_REGISTER(v) "+w"(v)
#else
#define AIM_FAST_REGISTER(v) "+m"(v)
#endif

template <class Op>
int64_t peak_of(int64_t rounds) {
  Float sum[kMR][2] = {};
  typename Op::Vec a{}, b{};
  // Opaque to the compiler, which would otherwise see that all sums are the same and compute one.
  AIM_FAST_UNROLL
  for (int r = 0; r < kMR; ++r) asm volatile("" : AIM_FAST_REGISTER(sum[r][0]), AIM_FAST_REGISTER(sum[r][1]));
  for (int64_t i = 0; i < rounds; ++i) {
    asm volatile("" : AIM_FAST_REGISTER(a), AIM_FAST_REGISTER(b));
    AIM_FAST_UNROLL
    for (int r = 0; r < kMR; ++r) {
      sum[r][0] = Op::multiply_add(sum[r][0], a, b);
      sum[r][1] = Op::multiply_add(sum[r][1], a, b);
    }
  }
  AIM_FAST_UNROLL
  for (int r = 0; r < kMR; ++r) asm volatile("" : AIM_FAST_REGISTER(sum[r][0]), AIM_FAST_REGISTER(sum[r][1]));
  return rounds * kMR * 2 * kLanes * Op::kPerUnit * 2;
}

inline int64_t peak([[maybe_unused]] Dtype dtype, int64_t rounds) {
#if defined(__AVX512BF16__)
  if (dtype == Dtype::kBFloat16) return peak_of<BFloat16Operand>(rounds);
#endif
  return peak_of<FloatOperand>(rounds);
}

}  // namespace aim_fast::AIM_FAST_ISA
