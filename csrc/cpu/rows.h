// Tiles [count, kNR] of floats against rows of a tensor, and how rows are cut into blocks.
#pragma once

#include "pack.h"
#include "pages.h"

namespace aim_fast::AIM_FAST_ISA {

// Largest block: its lines stay in the second-level cache while every panel passes over them.
constexpr int64_t kMaxBlockRows = round_up(120, kMR);
constexpr int64_t kMinBlockRows = kMR > 12 ? kMR : 36;  // of those that are not short for lack of rows
static_assert(kMaxBlockRows % kMR == 0 && kMinBlockRows % kMR == 0);
// Blocks are of whole tiles, the last one of a block of any height; where rows are the summed dimension, of whole
// lines.
constexpr int64_t kGrain = kLeft > 1 ? kMR : kStep;

struct Blocks {
  int64_t rows;  // of each block, a multiple of kGrain
  int64_t count;
};

// Blocks that keep this many threads equally busy: of the heights, the one with which the busiest thread has fewest
// rows, and of equal ones the largest that makes several blocks a thread, so that one that comes late is made up for.
// Where results depend on the cut, the number must not be that of the threads there are.
// Measured: EPYC (Zen 4), two threads, M = 1576: 22 blocks of 72 rows take 4 % less time than 14 of 120. One thread, M
// = 1576: 36 rows a block cost 0..1 % against 120. Not so where the weights have several parts, which each block reads
// from beyond the second cache. Measured: Xeon (Emerald Rapids), two threads, fp32: one block a thread takes 2..8 %
// less time than eight at M = 100 to 788; bf16, M = 197: the forward takes 7 % more.
template <class Op>
Blocks cut_rows(int64_t M, int64_t threads) {
  constexpr int64_t kBlocksAThread = Op::kParts > 1 ? 1 : 8;
  if (M == 0) return {kGrain, 0};
  const int64_t share = round_up(ceil_div(M, threads), kGrain);
  Blocks best{0, 0};
  int64_t fewest = 0;
  for (int64_t rows = least(share, kMaxBlockRows); rows >= least(share, kMinBlockRows); rows = (rows - 1) / kMR * kMR) {
    const int64_t whole = M / rows, rest = round_up(M % rows, kGrain);
    const int64_t busiest = whole % threads ? ceil_div(whole, threads) * rows : whole / threads * rows + rest;
    const bool first = best.rows == 0, better = busiest * 100 < fewest * 99;
    if (first || better || (busiest <= fewest && best.count < kBlocksAThread * threads)) {
      best = {rows, ceil_div(M, rows)};
      fewest = busiest;
    }
  }
  return best;
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

// Has the system map the pages of rows [count][n] of a result of M rows, where they follow each other in memory.
inline void map_rows(char* const* rows, int64_t count, int64_t n, int64_t M, Dtype dtype) {
  const int64_t bytes = n * element_size(dtype);
  if (rows[count - 1] - rows[0] == (count - 1) * bytes) map_pages(rows[0], rows[0] + count * bytes, M * bytes);
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

// Rows of a tile that are activated at once; every tile has an even number.
constexpr int kRowsAtOnce = 2;
static_assert(kStep % kRowsAtOnce == 0);

// kNR columns of one row, in float.
struct Span {
  Float low, high;
};

AIM_FAST_INLINE Span load_span(const float* c) { return {load_vector<Float>(c), load_vector<Float>(c + kLanes)}; }
AIM_FAST_INLINE void store_span(float* c, Span v) {
  store_vector(c, v.low);
  store_vector(c + kLanes, v.high);
}
AIM_FAST_INLINE Span operator+(Span a, Span b) { return {a.low + b.low, a.high + b.high}; }
AIM_FAST_INLINE Span operator*(Span a, Span b) { return {a.low * b.low, a.high * b.high}; }
AIM_FAST_INLINE Span operator*(Span a, float b) { return {a.low * b, a.high * b}; }

// Columns [n, n + columns) of a row; zero beyond. The branches go the same way all through a tile, and so cost nothing.
AIM_FAST_INLINE Span load_columns(const char* row, int64_t n, int64_t columns, Dtype dtype) {
  Span v;
  with_dtype(dtype, [&](auto storage) {
    using S = decltype(storage);
    const auto* p = reinterpret_cast<const typename S::Element*>(row) + n;
    if (columns == kNR) {
      v = {S::load(p), S::load(p + kLanes)};
    } else {
      v = {load_part<S>(p, columns), columns > kLanes ? load_part<S>(p + kLanes, columns - kLanes) : Float{}};
    }
  });
  return v;
}

// A row [n] as floats, rounded to a dtype, zero beyond up to a whole panel.
inline void widen_row(const char* row, int64_t n, Dtype dtype, Dtype round_to, float* out) {
  for (int64_t j = 0; j < n; j += kNR) {
    const Span v = load_columns(row, j, least<int64_t>(kNR, n - j), dtype);
    store_span(out + j, {rounded(v.low, round_to), rounded(v.high, round_to)});
  }
}

// Has columns [n, n + kNR) of the rows brought into the first cache for writing, or the second for reading, while a
// product runs. Measured: EPYC (Zen 4), one thread: for writing, dx takes 5 % less time, y 1 %; for reading, the whole
// backward 2 %, and the forward as long as before. Xeon (Emerald Rapids), matrix tiles: for writing, the forward takes
// 4 % more time in fp32 and 10 % in bf16, so there is none; for reading x and dy of the next block, the backward of M =
// 12608 on two threads 8 to 19 % less in bf16, but 6 % and more in fp32, whose operands have several parts.
enum class For { kReading, kWriting };
template <For kUse>
AIM_FAST_INLINE void prefetch_columns(char* const* rows, int64_t count, int64_t n, Dtype dtype) {
  constexpr bool kWrite = kUse == For::kWriting;
  if constexpr (kMatrixTiles && kWrite) return;
  asm volatile("");  // else gcc 12 sees a function without effect and drops the calls
  for (int64_t r = 0; r < count; ++r) {
    const char* from = rows[r] + n * element_size(dtype);
    for (int64_t b = 0; b < kNR * element_size(dtype); b += 64) __builtin_prefetch(from + b, kWrite, kWrite ? 3 : 2);
  }
}

// Columns [n, n + columns) of a row = v, rounded to its dtype.
AIM_FAST_INLINE void store_columns(char* row, int64_t n, int64_t columns, Dtype dtype, Span v) {
  with_dtype(dtype, [&](auto storage) {
    using S = decltype(storage);
    auto* p = reinterpret_cast<typename S::Element*>(row) + n;
    if (columns == kNR) {
      S::store(p, v.low);
      S::store(p + kLanes, v.high);
    } else {
      store_part<S>(p, v.low, columns);
      if (columns > kLanes) store_part<S>(p + kLanes, v.high, columns - kLanes);
    }
  });
}

// Rows [count][n] once more, rounded to a dtype: out is contiguous.
inline void copy_rows(char* const* rows, int64_t count, int64_t n, Dtype dtype, Dtype out_dtype, char* out) {
  for (int64_t r = 0; r < count; ++r, out += n * element_size(out_dtype)) {
    for (int64_t j = 0; j < n; j += kNR) {
      const int64_t columns = least<int64_t>(kNR, n - j);
      store_columns(out, j, columns, out_dtype, load_columns(rows[r], j, columns, dtype));
    }
  }
}

// Tile rows to lines of the next product: out is the tile's first line, [line][part][kMR][kUnits]; columns from n on.
template <class Op>
AIM_FAST_INLINE void store_lines(const float* c, int64_t count, int64_t n, typename Op::Unit* out) {
  for (int64_t r = 0; r < count; ++r) {
    for (int j = 0; j < kNR; j += kLanes * Op::kPerUnit) {
      const int64_t u = (n + j) / Op::kPerUnit;
      store_units<Op>(out + u / kUnits * kMR * kLine<Op> + r * kUnits + u % kUnits, kMR * kUnits,
                      Op::from_floats(c + r * kNR + j));
    }
  }
}

// Tile rows to the left operand of a product along rows: out is the place of the tile's first row and column, `part`
// the stride between parts.
template <class Op>
AIM_FAST_INLINE void store_left(const float* c, int64_t rows, typename Op::Unit* out, int64_t part) {
#if defined(AIM_FAST_AMX)
  alignas(64) const float zeros[kLanes] = {};
  for (int64_t first = 0; first < rows; first += kUnits * Op::kPerUnit, out += kUnits * kNR) {
    for (int j = 0; j < kNR; j += kLanes) {
      typename Op::Vec v[Op::kParts][kUnits] = {};
      for (int u = 0; u < kUnits && first + 2 * u < rows; ++u) {
        const float* even = c + (first + 2 * u) * kNR + j;
        const auto units = Op::pair_floats(even, first + 2 * u + 1 < rows ? even + kNR : zeros);
        for (int i = 0; i < Op::kParts; ++i) v[i][u] = units.part[i];
      }
      for (int i = 0; i < Op::kParts; ++i) {
        transpose(v[i]);
        AIM_FAST_UNROLL
        for (int k = 0; k < kLanes; ++k) store_vector(out + i * part + (j + k) * kUnits, v[i][k]);
      }
    }
  }
#else
  for (int64_t r = 0; r < rows; r += Op::kPerUnit, out += kNR) {
    for (int j = 0; j < kNR; j += kLanes) {
      const float* even = c + r * kNR + j;
      store_units<Op>(out + j, part, Op::pair_floats(even, even + kNR));
    }
  }
#endif
}

// Columns [n, n + kNR) of row r of a tile of lines.
template <class Op>
AIM_FAST_INLINE Span load_lines(const typename Op::Unit* tile, int64_t r, int64_t n) {
  using S = typename Op::Storage;
  constexpr int kPerLine = kUnits * Op::kPerUnit;
  const auto* elements = reinterpret_cast<const typename S::Element*>(tile);
  const auto load = [&](int64_t j, int part) {
    return S::load(elements + ((j / kPerLine * Op::kParts + part) * kMR + r) * kPerLine + j % kPerLine);
  };
  Span v = {load(n, Op::kParts - 1), load(n + kLanes, Op::kParts - 1)};
  for (int part = Op::kParts - 2; part >= 0; --part) v = v + Span{load(n, part), load(n + kLanes, part)};
  return v;
}

// Zeroes the columns from `columns` on, which the padded weights leave undefined once NaN or inf is about.
AIM_FAST_INLINE void clear_columns(float* c, int64_t count, int64_t columns) {
  if (columns == kNR) return;
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t j = columns; j < kNR; ++j) c[r * kNR + j] = 0.0f;
  }
}

}  // namespace aim_fast::AIM_FAST_ISA
