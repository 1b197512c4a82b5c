// Products of a few rows with a weight as it lies: nothing is packed, so that the weight is read once and no more.
#pragma once

#include "pack.h"

namespace aim_fast::AIM_FAST_ISA {

// Up to here packing costs more than it gains; products of bfloat16 gain more from it than those of float.
// Measured, one thread, D = 768, H = 192, time beside packing. EPYC (Zen 4): fp32 1 row 0.54, 7 0.65, 16 0.77; bf16 1
// row 0.89, 3 0.91, 7 1.27, 16 1.61. At D = 256, H = 64 all are within a tenth. Xeon (Emerald Rapids), forward and
// backward, on tiles: fp32 4 rows 0.19 and 0.34, 16 0.49 and 0.60, 32 0.80 and 0.97; fp16 4 rows 0.33 and 0.33, 12 0.76
// and 0.58, 16 0.94 and 0.70. At D = 256, H = 64: fp32 16 rows 1.05 and 0.75; fp16 12 rows 1.12 and 0.95, 16 1.27 and
// 1.05. Where there are tiles, fp32 takes its products from AVX-512 by now (isa_amx.cpp).
template <class Op>
constexpr int64_t few_rows = Op::kRounds       ? 4
                             : Op::kParts == 2 ? 12
                                               : 16;
// The same where the forward's weights were packed before.
template <class Op>
constexpr int64_t few_rows_packed = Op::kRounds ? 0 : 2;

// Sums held at once: a vector's worth, so that one transposition gives all of them, and at least 8.
constexpr int kDots = kLanes < 8 ? 8 : kLanes;

// c [kRows, kDots / kRows], row stride ldc = a w^T: rows of a [.., K padded with zeros], rows of w [.., K]; those
// beyond `rows` and `columns` repeat the last one.
template <class S, int kRows>
void dot_tile(const float* a, int64_t lda, int64_t rows, const typename S::Element* w, int64_t K, int64_t columns,
              Dtype round_to, float* c, int64_t ldc) {
  constexpr int kColumns = kDots / kRows;
  const float* left[kRows];
  const typename S::Element* right[kColumns];
  for (int i = 0; i < kRows; ++i) left[i] = a + least<int64_t>(i, rows - 1) * lda;
  for (int j = 0; j < kColumns; ++j) right[j] = w + least<int64_t>(j, columns - 1) * K;
  Float sum[kRows][kColumns] = {};
  const auto step = [&](int64_t k, auto&& load_right) {
    Float u[kRows];
    AIM_FAST_UNROLL
    for (int i = 0; i < kRows; ++i) u[i] = load_vector<Float>(left[i] + k);
    AIM_FAST_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      const Float v = load_right(right[j] + k);
      AIM_FAST_UNROLL
      for (int i = 0; i < kRows; ++i) sum[i][j] = u[i] * v + sum[i][j];
    }
  };
  const int64_t whole = K / kLanes * kLanes;
  for (int64_t k = 0; k < whole; k += kLanes) {
    step(k, [&](const typename S::Element* p) { return rounded(S::load(p), round_to); });
  }
  if (whole < K) {
    step(whole, [&](const typename S::Element* p) { return rounded(load_part<S>(p, K - whole), round_to); });
  }
  // Each vector down to the sum of its lanes: kLanes of them at a time, transposed and added.
  alignas(64) float dots[kDots];
  AIM_FAST_UNROLL
  for (int first = 0; first < kDots; first += kLanes) {
    Float v[kLanes];
    AIM_FAST_UNROLL
    for (int i = 0; i < kLanes; ++i) v[i] = sum[(first + i) / kColumns][(first + i) % kColumns];
    transpose(v);
    AIM_FAST_UNROLL
    for (int width = kLanes / 2; width; width /= 2) {
      AIM_FAST_UNROLL
      for (int i = 0; i < width; ++i) v[i] += v[i + width];
    }
    store_vector(dots + first, v[0]);
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) c[i * ldc + j] = dots[i * kColumns + j];
  }
}

// Calls f(first row, rows, height) for every four rows and the rest, with the height that covers them.
template <class F>
AIM_FAST_INLINE void by_fours(int64_t rows, const F& f) {
  for (int64_t i = 0; i < rows; i += 4) {
    const int64_t count = least<int64_t>(4, rows - i);
    if (count == 1) {
      f(i, count, Height<1>{});
    } else if (count == 2) {
      f(i, count, Height<2>{});
    } else {
      f(i, count, Height<4>{});
    }
  }
}

// c [rows, kNR] = a w^T for columns [n, n + columns) of the product; the other columns are left as they are.
inline void dot_product(const float* a, int64_t lda, int64_t rows, const Array& w, int64_t K, int64_t n,
                        int64_t columns, Dtype dtype, float* c) {
  with_dtype(w.dtype, [&](auto storage) {
    using S = decltype(storage);
    const auto* p = reinterpret_cast<const typename S::Element*>(w.data) + n * K;
    by_fours(rows, [&](int64_t first, int64_t count, auto height) {
      constexpr int kRows = decltype(height)::value, kColumns = kDots / kRows;
      for (int64_t j = 0; j < columns; j += kColumns) {
        dot_tile<S, kRows>(a + first * lda, lda, count, p + j * K, K, least<int64_t>(kColumns, columns - j),
                           rounding(w.dtype, dtype), c + first * kNR + j, kNR);
      }
    });
  });
}

// c [kRows, kNR] = a w for kNR columns of w [K, ldw] from here on, those beyond `columns` zero; rows of a beyond `rows`
// repeat the last one.
template <class S, int kRows>
void row_tile(const float* a, int64_t lda, int64_t rows, const typename S::Element* w, int64_t ldw, int64_t K,
              int64_t columns, Dtype round_to, float* c) {
  const float* left[kRows];
  for (int i = 0; i < kRows; ++i) left[i] = a + least<int64_t>(i, rows - 1) * lda;
  Float sum[kRows][2] = {};
  const bool whole = columns == kNR;
  for (int64_t k = 0; k < K; ++k, w += ldw) {
    Float low = whole ? S::load(w) : load_part<S>(w, columns);
    Float high = whole ? S::load(w + kLanes) : columns > kLanes ? load_part<S>(w + kLanes, columns - kLanes) : Float{};
    low = rounded(low, round_to), high = rounded(high, round_to);
    AIM_FAST_UNROLL
    for (int i = 0; i < kRows; ++i) {
      sum[i][0] = left[i][k] * low + sum[i][0];
      sum[i][1] = left[i][k] * high + sum[i][1];
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    store_vector(c + i * kNR, sum[i][0]);
    store_vector(c + i * kNR + kLanes, sum[i][1]);
  }
}

// c [rows, kNR] = a w for columns [n, n + columns) of w [K, N]; the other columns become zero.
inline void row_product(const float* a, int64_t lda, int64_t rows, const Array& w, int64_t K, int64_t N, int64_t n,
                        int64_t columns, Dtype dtype, float* c) {
  with_dtype(w.dtype, [&](auto storage) {
    using S = decltype(storage);
    const auto* p = reinterpret_cast<const typename S::Element*>(w.data) + n;
    by_fours(rows, [&](int64_t first, int64_t count, auto height) {
      row_tile<S, decltype(height)::value>(a + first * lda, lda, count, p, N, K, columns, rounding(w.dtype, dtype),
                                           c + first * kNR);
    });
  });
}

}  // namespace aim_fast::AIM_FAST_ISA
