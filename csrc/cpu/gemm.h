// The inner products: register tiles of kMR rows by kNR columns over operands packed in 32-bit units.
//
// A unit is one float, or two bfloat16 that follow each other along the summed dimension: with it both operand types
// have the same layouts. kUnits units of one row make a line: 64 bytes, less with short vectors.
//
//   lines   [tile][line][part][kMR][kUnits]   left operand of a product along columns: constant displacements
//   panel   [line][part][kUnits][kNR]         right operand: kNR columns, the summed dimension outermost
//   paired  [part][unit of rows][kNR]         right operand of a product along rows (weight gradients): kNR columns
//   left    [part][panel][unit of rows][kNR]  its left operand, panel by panel; with matrix tiles [unit of rows][kNR]
//                                             becomes [line of rows][kNR][kUnits]
//
// An operand has one part, or several whose sum it is.
//
// Measured: EPYC (Zen 4), AVX-512: the loops over a tile have to unroll fully, else the accumulators live in memory.
#pragma once

#include "dtypes.h"
#include "matrix.h"

namespace aim_fast::AIM_FAST_ISA {

#if defined(AIM_FAST_AMX)
constexpr int kMR = 2 * Matrix::kRows;  // two by two tiles of accumulators
#elif AIM_FAST_VECTOR_BYTES == 64
constexpr int kMR = 12;  // 24 accumulators of 32 registers
#else
constexpr int kMR = 6;  // 12 of 16
#endif
#if defined(AIM_FAST_AMX)
constexpr int kStep = Matrix::kRows;  // tiles come with 1 or 2 times as many rows
#else
constexpr int kStep = kMR / 3;  // tiles come with 1, 2 or 3 times as many rows
#endif
constexpr int kNR = 2 * kLanes;
constexpr int kUnits = least(16, kNR);  // no more than a panel, so that whole panels fill whole lines

// Vectors of units: one of each part.
template <class Vec, int kParts>
struct Parts {
  Vec part[kParts];
};

struct FloatOperand {
  using Unit = float;
  using Storage = Float32;
  using Vec = Float;
  static constexpr int kPerUnit = 1;
  static constexpr int kParts = 1;
  using Units = Parts<Vec, kParts>;

  static constexpr bool kRounds = false;               // whether units are rounded to the products' dtype as such
  static constexpr bool holds(Dtype) { return true; }  // whether values of a dtype keep all their bits

  static AIM_FAST_INLINE Vec broadcast(const Unit* p) { return splat(*p); }
  static AIM_FAST_INLINE Float multiply_add(Float sum, Vec a, Vec b) { return a * b + sum; }

  // kLanes units: from floats of one row, from a row as stored, from one column each of a pair of rows (here the
  // first).
  static AIM_FAST_INLINE Units from_floats(const float* p) { return {load_vector<Vec>(p)}; }
  template <class S>
  static AIM_FAST_INLINE Units from_row(const typename S::Element* p, Dtype round_to) {
    return {rounded(S::load(p), round_to)};
  }
  template <class S>
  static AIM_FAST_INLINE Units from_pair(const typename S::Element* even, const typename S::Element*, Dtype round_to) {
    return {rounded(S::load(even), round_to)};
  }
  static AIM_FAST_INLINE Units pair_floats(const float* even, const float*) { return {load_vector<Vec>(even)}; }
};

#if defined(__AVX512BF16__)
struct BFloat16Operand {
  using Unit = uint32_t;
  using Storage = BFloat16;
  using Vec = Uint;
  static constexpr int kPerUnit = 2;
  static constexpr int kParts = 1;
  using Units = Parts<Vec, kParts>;

  static constexpr bool kRounds = true;
  static constexpr bool holds(Dtype dtype) { return dtype == Dtype::kBFloat16; }

  static AIM_FAST_INLINE Vec broadcast(const Unit* p) { return (Vec)_mm512_set1_epi32(static_cast<int>(*p)); }
  static AIM_FAST_INLINE Float multiply_add(Float sum, Vec a, Vec b) {
    return (Float)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }

  static AIM_FAST_INLINE Units from_floats(const float* p) {
    return {(Vec)_mm512_cvtne2ps_pbh((__m512)load_vector<Float>(p + kLanes), (__m512)load_vector<Float>(p))};
  }
  template <class S>
  static AIM_FAST_INLINE Units from_row(const typename S::Element* p, Dtype) {
    if constexpr (sizeof(typename S::Element) == 2 && S::kIsBFloat16) return {load_vector<Vec>(p)};
    return {(Vec)_mm512_cvtne2ps_pbh((__m512)S::load(p + kLanes), (__m512)S::load(p))};
  }
  // One column of each of two rows: (odd, even) as the halves of a unit.
  template <class S>
  static AIM_FAST_INLINE Units from_pair(const typename S::Element* even, const typename S::Element* odd, Dtype) {
    if constexpr (S::kIsBFloat16) return {pair(load_vector<Half>(even), load_vector<Half>(odd))};
    return {pair(to_bf16(S::load(even)), to_bf16(S::load(odd)))};
  }
  static AIM_FAST_INLINE Units pair_floats(const float* even, const float* odd) {
    return {pair(to_bf16(load_vector<Float>(even)), to_bf16(load_vector<Float>(odd)))};
  }

 private:
  static AIM_FAST_INLINE Vec pair(Half even, Half odd) {
    return (Vec)_mm512_cvtepu16_epi32((__m256i)even) | ((Vec)_mm512_cvtepu16_epi32((__m256i)odd) << 16);
  }
};
#endif

// Units of rows that follow each other in memory in a left operand of a product along rows.
constexpr int kLeft = kMatrixTiles ? kUnits : 1;

// Units of a row in a line, all parts.
template <class Op>
constexpr int kLine = kUnits * Op::kParts;

// An operand of a product along rows: units, the strides from one panel of kNR columns to the next (a right operand is
// one) and from part to part.
template <class Op>
struct Along {
  const typename Op::Unit* units;
  int64_t panel, part;

  // Column n of a left operand; kStep columns, and all of a tile of matrix tiles, lie in one panel.
  const typename Op::Unit* column(int64_t n) const { return units + n / kNR * panel + n % kNR * kLeft; }
};
static_assert(kNR % kStep == 0 && (!kMatrixTiles || kNR % kMR == 0));

#if defined(AIM_FAST_AMX)

// c [R, kNR] = sum over lines of a (lines) times b (panel).
template <class Op, int R>
void tile_columns(int64_t lines, const typename Op::Unit* a, const typename Op::Unit* b, float* c) {
  Matrix::Sums<R / Matrix::kRows> sums;
  sums.zero();
  for (int64_t line = 0; line < lines; ++line, a += kMR * kLine<Op>, b += kLine<Op> * kNR) {
    sums.template multiply<Op::kParts>(a, kUnits, kMR * kUnits, b, kNR, kUnits * kNR);
  }
  sums.store(c, kNR);
}

// c [R, kNR] += a^T b over units of rows: a left, from column n on, b paired; zero up to whole lines.
template <class Op, int R>
void tile_rows(int64_t units, const Along<Op>& left, int64_t n, const Along<Op>& right, float* c) {
  Matrix::Sums<R / Matrix::kRows> sums;
  sums.zero();
  const typename Op::Unit *a = left.column(n), *b = right.units;
  for (int64_t u = 0; u < units; u += kUnits, a += kUnits * kNR, b += kUnits * kNR) {
    sums.template multiply<Op::kParts>(a, kUnits, left.part, b, kNR, right.part);
  }
  // Short sums first lose less.
  alignas(64) float sum[R * kNR];
  sums.store(sum, kNR);
  for (int i = 0; i < R * kNR; i += kLanes)
    store_vector(c + i, load_vector<Float>(c + i) + load_vector<Float>(sum + i));
}

#else

// c [R, kNR] = sum over lines of a (lines) times b (panel).
template <class Op, int R>
void tile_columns(int64_t lines, const typename Op::Unit* a, const typename Op::Unit* b, float* c) {
  using Vec = typename Op::Vec;
  Float sum[R][2] = {};
  for (int64_t line = 0; line < lines; ++line, a += kMR * kUnits) {
#pragma GCC unroll 4
    for (int u = 0; u < kUnits; ++u, b += kNR) {
      Vec b0 = load_vector<Vec>(b), b1 = load_vector<Vec>(b + kLanes);
      AIM_FAST_UNROLL
      for (int r = 0; r < R; ++r) {
        Vec v = Op::broadcast(a + r * kUnits + u);
        sum[r][0] = Op::multiply_add(sum[r][0], v, b0);
        sum[r][1] = Op::multiply_add(sum[r][1], v, b1);
      }
    }
  }
  AIM_FAST_UNROLL
  for (int r = 0; r < R; ++r) {
    store_vector(c + r * kNR, sum[r][0]);
    store_vector(c + r * kNR + kLanes, sum[r][1]);
  }
}

// c [R, kNR] += a^T b over units of rows: a left, from column n on, b paired.
template <class Op, int R>
void tile_rows(int64_t units, const Along<Op>& left, int64_t n, const Along<Op>& right, float* c) {
  using Vec = typename Op::Vec;
  const typename Op::Unit *a[R / kStep], *b = right.units;
  for (int i = 0; i < R / kStep; ++i) a[i] = left.column(n + i * kStep);
  Float sum[R][2] = {};
#pragma GCC unroll 4
  for (int64_t u = 0; u < units; ++u, b += kNR) {
    Vec b0 = load_vector<Vec>(b), b1 = load_vector<Vec>(b + kLanes);
    AIM_FAST_UNROLL
    for (int r = 0; r < R; ++r) {
      Vec v = Op::broadcast(a[r / kStep] + u * kNR + r % kStep);
      sum[r][0] = Op::multiply_add(sum[r][0], v, b0);
      sum[r][1] = Op::multiply_add(sum[r][1], v, b1);
    }
  }
  AIM_FAST_UNROLL
  for (int r = 0; r < R; ++r) {
    store_vector(c + r * kNR, load_vector<Float>(c + r * kNR) + sum[r][0]);
    store_vector(c + r * kNR + kLanes, load_vector<Float>(c + r * kNR + kLanes) + sum[r][1]);
  }
}

#endif

// Calls f with the smallest tile height that covers `rows`, as a compile-time constant.
template <int R>
struct Height {
  static constexpr int value = R;
};
template <class F>
AIM_FAST_INLINE void with_height(int64_t rows, F&& f) {
  if (rows > 2 * kStep) return f(Height<kMR>{});
  if (rows > kStep) return f(Height<2 * kStep>{});
  return f(Height<kStep>{});
}

// How many lines a dimension of n takes: whole panels, so that a product's result can be the next one's left operand.
template <class Op>
constexpr int64_t lines_of(int64_t n) {
  return ceil_div(round_up(n, kNR), kUnits * Op::kPerUnit);
}

// Panels that are passed over for one tile of rows before the next: as many as this holds, so that they stay in the
// second-level cache while a tile's rows are still walked along, as memory streams.
// Measured: EPYC (Zen 4), 1 MiB: 3 % of the forward beside one panel at a time, and no loss beside all of them.
constexpr int64_t kPanelBytes = 256 << 10;

// For every tile of the rows and every panel of N columns: begin(first row, rows, first column), c = a b, then
// finish(first row, rows, first column, columns, c).
template <class Op, class Begin, class Finish>
AIM_FAST_INLINE void block_product(int64_t rows, int64_t N, int64_t lines, const typename Op::Unit* a,
                                   const typename Op::Unit* panels, const Begin& begin, const Finish& finish) {
  alignas(64) float c[kMR * kNR];
  const int64_t panel = lines * kLine<Op> * kNR;
  const int64_t group = kNR * (kPanelBytes / (panel * 4 + 1) + 1);
  for (int64_t first = 0; first < N; first += group) {
    for (int64_t m = 0; m < rows; m += kMR) {
      const int64_t count = least<int64_t>(kMR, rows - m);
      for (int64_t n = first; n < least(first + group, N); n += kNR) {
        begin(m, count, n);
        with_height(count, [&](auto height) {
          tile_columns<Op, decltype(height)::value>(lines, a + m * lines * kLine<Op>, panels + n / kNR * panel, c);
        });
        finish(m, count, n, least<int64_t>(kNR, N - n), c);
      }
    }
  }
}

}  // namespace aim_fast::AIM_FAST_ISA
