// Rows of a product on split operands that are not finite, once more in float, which tells inf from NaN.
#pragma once

#include "few.h"
#include "rows.h"

namespace aim_fast::AIM_FAST_ISA {

// c [rows, kNR]: columns [n, n + columns) of a w^T, w [.., K]. left(r) gives row r of a as floats, padded with zeros.
template <class Op, class Left>
AIM_FAST_INLINE void mend(int64_t rows, const Array& w, int64_t K, int64_t n, int64_t columns, Dtype dtype, float* c,
                          const Left& left) {
  if constexpr (Op::kParts > 1) {
    const auto is_finite = [](Float zeros) {
      float sum = 0.0f;
      for (int i = 0; i < kLanes; ++i) sum += zeros[i];
      return sum == 0.0f;
    };
    Float all{};
    for (int64_t r = 0; r < rows; ++r) all += load_span(c + r * kNR).low * 0.0f + load_span(c + r * kNR).high * 0.0f;
    if (is_finite(all)) return;
    for (int64_t r = 0; r < rows; ++r) {
      const Span zeros = load_span(c + r * kNR) * 0.0f;
      if (!is_finite(zeros.low + zeros.high)) dot_product(left(r), 0, 1, w, K, n, columns, dtype, c + r * kNR);
    }
  }
}

}  // namespace aim_fast::AIM_FAST_ISA
