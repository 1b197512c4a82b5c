// What the ways through the backward share: what becomes of tiles, sums over rows, and these as results.
#pragma once

#include "activation.h"
#include "rows.h"

namespace aim_fast::AIM_FAST_ISA {

// c: dh = (scale dy) w2 becomes dz; h: row_scale * act(z). Columns beyond H become zero. Returns the sum of dz over the
// rows. factors: row_scale.
inline Span hidden_gradient(const Problem& p, char* const* z_rows, Dtype z_dtype, const float* factors, int64_t rows,
                            int64_t n, int64_t columns, float* c, float* h) {
  Span sum{};
  with_activation(p.activation, [&](auto activation) {
    using A = decltype(activation);
    for (int64_t r = 0; r < rows; r += kRowsAtOnce) {
      Float z[2 * kRowsAtOnce], dh[2 * kRowsAtOnce];
      for (int i = 0; i < kRowsAtOnce; ++i) {
        const int64_t row = least(r + i, rows - 1);
        const Span left = load_span(c + row * kNR) * (p.alpha * factors[row]);
        const Span right = load_columns(z_rows[row], n, columns, z_dtype);
        dh[2 * i] = left.low, dh[2 * i + 1] = left.high;
        z[2 * i] = right.low, z[2 * i + 1] = right.high;
      }
      activate_backward<A>(z, dh);
      for (int i = 0; i < kRowsAtOnce && r + i < rows; ++i) {
        const Span dz = {dh[2 * i], dh[2 * i + 1]};
        sum = sum + dz;
        store_span(c + (r + i) * kNR, dz);
        store_span(h + (r + i) * kNR, Span{z[2 * i], z[2 * i + 1]} * factors[r + i]);
      }
    }
  });
  clear_columns(c, rows, columns);
  clear_columns(h, rows, columns);
  return sum;
}

// A tile of dz w1 becomes dx, from column n on. lines: dy in lines, if they hold its bits; dy_rows are read otherwise.
template <class Op>
AIM_FAST_INLINE void store_dx(const BackwardParams& p, char* const* dx_rows, char* const* dy_rows,
                              const typename Op::Unit* lines, int64_t rows, int64_t n, int64_t columns,
                              const float* c) {
  for (int64_t r = 0; r < rows; ++r) {
    Span dx = load_span(c + r * kNR);
    if (p.skip) dx = dx + (lines ? load_lines<Op>(lines, r, n) : load_columns(dy_rows[r], n, columns, p.dy.dtype));
    store_columns(dx_rows[r], n, columns, p.dx.dtype, dx);
  }
}

// The sum over the rows of dy f, from column n on; c: a tile of row_scale act(z) w2^T. factors: row_scale.
inline Span branch_gradient(const BackwardParams& p, char* const* dy_rows, const float* factors, int64_t rows,
                            int64_t n, int64_t columns, const float* b2, const float* c) {
  const Span bias = load_span(b2 + n);
  Span sum{};
  for (int64_t r = 0; r < rows; ++r) {
    const Span f = load_span(c + r * kNR) + bias * factors[r];
    sum = sum + f * load_columns(dy_rows[r], n, columns, p.dy.dtype);
  }
  return sum;
}

// Sums over rows go on in double: in float they would lose what eager's trees of sums keep.
AIM_FAST_INLINE void accumulate(Span v, double* to) {
  for (int j = 0; j < kLanes; ++j) to[j] += v.low[j], to[kLanes + j] += v.high[j];
}

// out += the sum over rows of factors times their columns [n, n + columns), a tile of rows at a time; columns are at
// most a panel's.
inline void sum_rows(char* const* rows, const float* factors, int64_t count, Dtype dtype, int64_t n, int64_t columns,
                     double* out) {
  for (int64_t m = 0; m < count; m += kMR) {
    Span sum{};
    for (int64_t r = m; r < least(count, m + kMR); ++r)
      sum = sum + load_columns(rows[r], n, columns, dtype) * factors[r];
    accumulate(sum, out);
  }
}

// Rows whose sum is long enough to pay for fetching the tile that it goes to.
template <class Op>
constexpr int64_t kRunRows = Op::kPerUnit * kMaxBlockRows;

// Units of rows in an operand along them.
template <class Op>
constexpr int64_t units_along(int64_t rows) {
  return round_up(ceil_div(rows, Op::kPerUnit), kLeft);
}

// Columns [first, first + kNR) of the rows of x or dy, n wide.
struct Columns {
  char* const* rows;
  int64_t n, first;
  Dtype dtype, round_to;
};

// sums [H, kNR] += left^T right, `run` of `count` rows at a time. panel: room for a run paired. The panel that this
// thread is likely to pack next is brought nearer meanwhile. Operands in panels lie on few pages: rows of whole
// tensors, packed beforehand for all threads, lay on one each. Measured beside that: EPYC (Zen 3), one thread, the
// backward takes 0.92 of the time at M = 1576, D = 768, H = 192, 0.90 at M = 12608, 0.89 at M = 4112, D = 1024, H =
// 512; without bringing nearer 0.95, 0.98, 0.89.
template <class Op>
void add_rows(int64_t count, int64_t run, const Along<Op>& left, const Columns& right, int64_t H,
              typename Op::Unit* panel, float* sums) {
  const int64_t part = units_along<Op>(run) * kNR;
  const bool fetch = right.first + 2 * kNR <= right.n;
  for (int64_t m = 0; m < count; m += run) {
    char* const* rows = right.rows + m;
    const int64_t some = least(run, count - m), units = units_along<Op>(some);
    pack_paired<Op>(rows, some, right.n, right.first, right.dtype, right.round_to, units, panel, part);
    const Along<Op> from{left.units + m / Op::kPerUnit * kNR, left.panel, left.part};
    const int64_t share = ceil_div(some * kMR, H);
    for (int64_t n = 0, next = 0; n < H; n += kMR, next += share) {
      if (fetch && next < some) {
        prefetch_columns<For::kReading>(rows + next, least(share, some - next), right.first + kNR, right.dtype);
      }
      with_height(least<int64_t>(kMR, H - n), [&](auto height) {
        tile_rows<Op, decltype(height)::value>(units, from, n, {panel, part, part}, sums + n * kNR);
      });
    }
  }
}

// A panel of dw1, columns from `first` on, rounded to its dtype.
inline void store_dw1(const BackwardParams& p, int64_t first, const float* sums) {
  const int64_t columns = least<int64_t>(kNR, p.D - first);
  for (int64_t n = 0; n < p.H; ++n) {
    char* row = p.dw1.data + n * p.D * element_size(p.dw1.dtype);
    store_columns(row, first, columns, p.dw1.dtype, load_span(sums + n * kNR));
  }
}

// A panel of G, transposed and scaled, to rows of dw2 from `first` on.
inline void store_dw2(const BackwardParams& p, int64_t first, const float* scale, const float* g) {
  const int64_t columns = least<int64_t>(kNR, p.D - first);
  for (int64_t j = 0; j < columns; j += kLanes) {
    for (int64_t n = 0; n < p.H; n += kLanes) {
      Float block[kLanes];
      for (int k = 0; k < kLanes; ++k) {
        block[k] = n + k < p.H ? load_vector<Float>(g + (n + k) * kNR + j) : Float{};
      }
      transpose(block);
      with_dtype(p.dw2.dtype, [&](auto storage) {
        using S = decltype(storage);
        for (int64_t k = 0; k < least<int64_t>(kLanes, columns - j); ++k) {
          const int64_t d = first + j + k;
          auto* row = reinterpret_cast<typename S::Element*>(p.dw2.data) + d * p.H;
          store_part<S>(row + n, block[k] * (scale[d] * p.alpha), p.H - n);
        }
      });
    }
  }
}

// out [n] = value(i), rounded to its dtype.
template <class Value>
void narrow(int64_t n, const Array& out, const Value& value) {
  with_dtype(out.dtype, [&](auto storage) {
    using S = decltype(storage);
    for (int64_t i = 0; i < n; ++i) {
      store_part<S>(reinterpret_cast<typename S::Element*>(out.data) + i, splat(static_cast<float>(value(i))), 1);
    }
  });
}

// The results that are sums over rows: db1 [H] of dz; db2 and dscale [D] of row_scale dy and of row_scale dy f.
inline void finish_vectors(const BackwardParams& p, const float* scale, const double* db1, const double* db2,
                           const double* dscale) {
  if (p.db1) narrow(p.H, p.db1, [&](int64_t h) { return db1[h]; });
  if (p.db2) narrow(p.D, p.db2, [&](int64_t d) { return p.alpha * scale[d] * db2[d]; });
  if (!p.dscale) return;
  double total = 0.0;
  for (int64_t d = 0; d < p.D; ++d) total += dscale[d];
  narrow(p.scale_size, p.dscale, [&](int64_t d) { return p.alpha * (p.scale_size == 1 ? total : dscale[d]); });
}

}  // namespace aim_fast::AIM_FAST_ISA
