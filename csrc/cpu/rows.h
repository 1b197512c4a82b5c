// Tiles [count, kNR] of floats against rows of a tensor, and how rows are cut into blocks.
#pragma once

#include "pack.h"

namespace aim_fast::AIM_FAST_ISA {

// Largest block: its lines stay in the second-level cache while every panel passes over them.
constexpr int64_t kMaxBlockRows = 120;
static_assert(kMaxBlockRows % kMR == 0);

struct Blocks {
  int64_t rows;  // of each block, a multiple of kMR
  int64_t count;
};

// Blocks of equal work for every thread. For results that depend on the cut, pass threads = 1.
inline Blocks cut_rows(int64_t M, int64_t threads) {
  if (M == 0) return {kMR, 0};
  const int64_t wanted = threads * ceil_div(M, threads * kMaxBlockRows);
  const int64_t rows = round_up(ceil_div(M, wanted), kMR);
  return {rows, ceil_div(M, rows)};
}

// Pointers to rows [first, first + count).
inline void row_pointers(const Rows& t, int64_t first, int64_t count, char** out) {
  if (t.ndim <= 1) {
    const int64_t step = t.ndim == 0 ? 0 : t.stride[0] * element_size(t.dtype);
    for (int64_t i = 0; i < count; ++i) out[i] = t.data + (first + i) * step;
    return;
  }
  for (int64_t i = 0; i < count; ++i) out[i] = t.row(first + i);
}

// The factors alpha * row_scale of rows [first, first + count).
inline void row_factors(const Rows& row_scale, float alpha, int64_t first, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = alpha;
  if (!row_scale) return;
  with_dtype(row_scale.dtype, [&](auto storage) {
    using S = decltype(storage);
    for (int64_t i = 0; i < count; ++i) {
      out[i] *= load_part<S>(reinterpret_cast<const typename S::Element*>(row_scale.row(first + i)), 1)[0];
    }
  });
}

// c += columns [n, n + columns) of the rows.
inline void add_rows(float* c, char* const* rows, int64_t count, int64_t n, int64_t columns, Dtype dtype) {
  with_dtype(dtype, [&](auto storage) {
    using S = decltype(storage);
    for (int64_t r = 0; r < count; ++r, c += kNR) {
      const auto* row = reinterpret_cast<const typename S::Element*>(rows[r]) + n;
      if (columns == kNR) {
        store_vector(c, load_vector<Float>(c) + S::load(row));
        store_vector(c + kLanes, load_vector<Float>(c + kLanes) + S::load(row + kLanes));
        continue;
      }
      for (int64_t j = 0; j < columns; j += kLanes) {
        store_vector(c + j, load_vector<Float>(c + j) + load_part<S>(row + j, columns - j));
      }
    }
  });
}

// Columns [n, n + columns) of the rows = c, rounded to their dtype.
inline void store_rows(const float* c, char* const* rows, int64_t count, int64_t n, int64_t columns, Dtype dtype) {
  with_dtype(dtype, [&](auto storage) {
    using S = decltype(storage);
    for (int64_t r = 0; r < count; ++r, c += kNR) {
      auto* row = reinterpret_cast<typename S::Element*>(rows[r]) + n;
      if (columns == kNR) {
        S::store(row, load_vector<Float>(c));
        S::store(row + kLanes, load_vector<Float>(c + kLanes));
        continue;
      }
      for (int64_t j = 0; j < columns; j += kLanes) store_part<S>(row + j, load_vector<Float>(c + j), columns - j);
    }
  });
}

// Tile rows to lines of the next product: out is the tile's first line, [line][kMR][kUnits]; columns from n on.
template <class Op>
AIM_FAST_INLINE void store_lines(const float* c, int64_t count, int64_t n, typename Op::Unit* out) {
  for (int64_t r = 0; r < count; ++r) {
    for (int j = 0; j < kNR; j += kLanes * Op::kPerUnit) {
      const int64_t u = (n + j) / Op::kPerUnit;
      store_vector(out + u / kUnits * kMR * kUnits + r * kUnits + u % kUnits, Op::from_floats(c + r * kNR + j));
    }
  }
}

// Zeroes the columns from `columns` on, which the padded weights leave undefined once NaN or inf is about.
AIM_FAST_INLINE void clear_columns(float* c, int64_t count, int64_t columns) {
  if (columns == kNR) return;
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t j = columns; j < kNR; ++j) c[r * kNR + j] = 0.0f;
  }
}

}  // namespace aim_fast::AIM_FAST_ISA
