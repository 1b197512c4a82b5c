// Packing: rows and weights of any storage type into the operand layouts of gemm.h. Padding is zero throughout, so that
// it adds nothing whatever it meets; NaN in the data meets only its own row or column.
#pragma once

#include "gemm.h"

namespace aim_fast::AIM_FAST_ISA {

// What a dtype has to be rounded to before a product in compute dtype `to`: nothing when it fits already.
constexpr Dtype rounding(Dtype from, Dtype to) { return from == to ? Dtype::kFloat32 : to; }

// kLanes units of a row from element k on, the row having n elements; zero beyond.
template <class Op, class S>
AIM_FAST_INLINE typename Op::Units row_units(const typename S::Element* row, int64_t k, int64_t n, Dtype round_to) {
  constexpr int kElements = kLanes * Op::kPerUnit;
  if (k + kElements <= n) return Op::template from_row<S>(row + k, round_to);
  typename S::Element part[kElements] = {};
  for (int64_t i = k; i < n; ++i) part[i - k] = row[i];
  return Op::template from_row<S>(part, round_to);
}

// Units to a place of each part.
template <class Op>
AIM_FAST_INLINE void store_units(typename Op::Unit* out, int64_t part, const typename Op::Units& units) {
  for (int i = 0; i < Op::kParts; ++i) store_vector(out + i * part, units.part[i]);
}

// Of rows [M][n] in lines, whole tiles of them.
template <class Op>
constexpr int64_t bytes_in_lines(int64_t M, int64_t n) {
  return round_up(M, kMR) * lines_of<Op>(n) * kLine<Op> * sizeof(typename Op::Unit);
}

// rows [count][n], times factor [n] if given, to lines; rows up to the next whole tile are zero.
template <class Op>
void pack_lines(char* const* rows, int64_t count, int64_t n, Dtype dtype, Dtype round_to, const float* factor,
                typename Op::Unit* out) {
  constexpr int kElements = kLanes * Op::kPerUnit;
  const int64_t lines = lines_of<Op>(n);
  for (int64_t m = 0; m < round_up(count, kMR); ++m) {
    typename Op::Unit* to = out + m / kMR * lines * kMR * kLine<Op> + m % kMR * kUnits;
    with_dtype(dtype, [&](auto storage) {
      using S = decltype(storage);
      const auto* row = m < count ? reinterpret_cast<const typename S::Element*>(rows[m]) : nullptr;
      for (int64_t u = 0; u < lines * kUnits; u += kLanes) {
        const int64_t k = u * Op::kPerUnit;
        typename Op::Units v{};
        if (row && k < n) {
          if (factor) {
            alignas(64) float scaled[kElements] = {};
            for (int64_t i = 0; i < kElements; i += kLanes) {
              if (k + i >= n) break;
              store_vector(scaled + i, load_part<S>(row + k + i, n - k - i) * load_vector<Float>(factor + k + i));
            }
            v = Op::from_floats(scaled);
          } else {
            v = row_units<Op, S>(row, k, n, round_to);
          }
        }
        store_units<Op>(to + u / kUnits * kMR * kLine<Op> + u % kUnits, kMR * kUnits, v);
      }
    });
  }
}

// Columns [first, first + kNR) of the rows [count][n], paired, as one panel: out[u * kNR + j] holds rows kPerUnit u and
// on, and `part` further on their next part. Units up to `units` and columns beyond n are zero.
template <class Op>
void pack_paired(char* const* rows, int64_t count, int64_t n, int64_t first, Dtype dtype, Dtype round_to, int64_t units,
                 typename Op::Unit* out, int64_t part) {
  with_dtype(dtype, [&](auto storage) {
    using S = decltype(storage);
    using Element = typename S::Element;
    constexpr int kLast = Op::kPerUnit - 1;
    const int64_t columns = least<int64_t>(kNR, n - first);
    for (int64_t m = 0; m < units * Op::kPerUnit; m += Op::kPerUnit, out += kNR) {
      const auto row = [&](int64_t r) { return reinterpret_cast<const Element*>(rows[r]) + first; };
      const auto store = [&](const Element* even, const Element* odd) {
        for (int j = 0; j < kNR; j += kLanes) {
          store_units<Op>(out + j, part, Op::template from_pair<S>(even + j, odd + j, round_to));
        }
      };
      if (m + kLast < count && columns == kNR) {
        store(row(m), row(m + kLast));
      } else {
        Element edge[Op::kPerUnit][kNR] = {};
        for (int i = 0; i < Op::kPerUnit && m + i < count; ++i) {
          for (int64_t j = 0; j < columns; ++j) edge[i][j] = row(m + i)[j];
        }
        store(edge[0], edge[kLast]);
      }
    }
  });
}

// Panel of columns [first, first + kNR) for the product with w^T: w [N, K] row-major, the summed dimension its last.
// Parts are made of what is transposed, not transposed one by one.
template <class Op>
void pack_panel_transposed(const Array& w, int64_t N, int64_t K, int64_t first, Dtype dtype, typename Op::Unit* out) {
  using Vec = typename Op::Vec;
  const Dtype round_to = rounding(w.dtype, dtype);
  constexpr int kAtOnce = Op::kParts > 1 ? kLanes / Op::kPerUnit : kLanes;  // units of each column
  const int64_t units = lines_of<Op>(K) * kUnits;
  with_dtype(w.dtype, [&](auto storage) {
    using S = decltype(storage);
    const auto* rows = reinterpret_cast<const typename S::Element*>(w.data);
    for (int64_t u = 0; u < units; u += kAtOnce) {
      const int64_t k = u * Op::kPerUnit;
      for (int64_t j = 0; j < kNR; j += kLanes) {
        auto* to = out + (u / kUnits * kLine<Op> + u % kUnits) * kNR + j;
        const auto row = [&](int i) { return first + j + i < N && k < K ? rows + (first + j + i) * K : nullptr; };
        if constexpr (Op::kParts > 1) {
          Float block[kLanes];
          AIM_FAST_UNROLL
          for (int i = 0; i < kLanes; ++i) block[i] = row(i) ? load_part<S>(row(i) + k, K - k) : Float{};
          transpose(block);
          AIM_FAST_UNROLL
          for (int i = 0; i < kAtOnce; ++i) {
            const Float even = rounded(block[2 * i], round_to), odd = rounded(block[2 * i + 1], round_to);
            store_units<Op>(to + i * kNR, kUnits * kNR, Op::pair(even, odd));
          }
        } else {
          Vec block[kLanes];
          AIM_FAST_UNROLL
          for (int i = 0; i < kLanes; ++i) {
            block[i] = row(i) ? row_units<Op, S>(row(i), k, K, round_to).part[0] : Vec{};
          }
          transpose(block);
          AIM_FAST_UNROLL
          for (int i = 0; i < kLanes; ++i) store_vector(to + i * kNR, block[i]);
        }
      }
    }
  });
}

// Panel of columns [first, first + kNR) for the product with w: w [K, N] row-major, the summed dimension its first.
template <class Op>
void pack_panel(const Array& w, int64_t K, int64_t N, int64_t first, Dtype dtype, typename Op::Unit* out) {
  constexpr int kRows = kUnits * Op::kPerUnit;
  char* rows[kRows];
  for (int64_t line = 0; line < lines_of<Op>(K); ++line, out += kLine<Op> * kNR) {
    const int64_t k = line * kRows, count = k < K ? least<int64_t>(kRows, K - k) : 0;
    for (int64_t i = 0; i < count; ++i) rows[i] = w.data + (k + i) * N * element_size(w.dtype);
    pack_paired<Op>(rows, count, N, first, w.dtype, rounding(w.dtype, dtype), kUnits, out, kUnits * kNR);
  }
}

// v [n] as floats times a constant, zero beyond up to a whole panel; an absent v counts as `otherwise`.
inline void widen(const Array& v, int64_t n, int64_t v_size, float factor, float otherwise, float* out) {
  for (int64_t i = 0; i < round_up(n, kNR); ++i) out[i] = 0.0f;
  for (int64_t i = 0; i < n; ++i) out[i] = otherwise * factor;
  if (!v) return;
  with_dtype(v.dtype, [&](auto storage) {
    using S = decltype(storage);
    const auto* p = reinterpret_cast<const typename S::Element*>(v.data);
    for (int64_t i = 0; i < n; i += kLanes) {
      Float value = v_size == 1 ? splat(load_part<S>(p, 1)[0]) : load_part<S>(p + i, n - i);
      store_part<Float32>(out + i, value * factor, n - i);
    }
  });
}

}  // namespace aim_fast::AIM_FAST_ISA
