// What becomes of the forward's tiles: x w1^T into h, h w2^T into y. Shared by the ways through the products.
#pragma once

#include "activation.h"
#include "mend.h"
#include "rows.h"
#include "scratch.h"

namespace aim_fast::AIM_FAST_ISA {

// Some rows of the call, at most kMost.
template <class Op, int64_t kMost>
struct ForwardRows {
  int64_t first, count;
  char *x[kMost], *y[kMost], *residual[kMost];
  float factors[kMost];
  const typename Op::Unit* lines = nullptr;  // x once more; absent where the compute dtype does not hold it exactly

  ForwardRows(const ForwardParams& p, int64_t first_row, int64_t rows) : first(first_row), count(rows) {
    row_pointers(p.x, first, count, x);
    row_pointers(p.y, first, count, y);
    if (p.residual) row_pointers(p.residual, first, count, residual);
    row_factors(p.row_scale, p.alpha, first, count, factors);
  }
};

template <class Op>
class ForwardTiles {
 public:
  ForwardTiles(const ForwardParams& p, Layout& layout)
      : p_(p),
        b1_at_(layout.add(round_up(p.H, kNR) * sizeof(float))),
        b2_at_(layout.add(round_up(p.D, kNR) * sizeof(float))),
        scale_at_(layout.add(round_up(p.D, kNR) * sizeof(float))) {}

  // The vectors in float, padded, in the scratch that the layout describes.
  void fill(char* scratch) {
    b1_ = reinterpret_cast<float*>(scratch + b1_at_);
    b2_ = reinterpret_cast<float*>(scratch + b2_at_);
    scale_ = reinterpret_cast<float*>(scratch + scale_at_);
    widen(p_.b1, p_.H, p_.H, 1.0f, 0.0f, b1_);
    widen(p_.b2, p_.D, p_.D, 1.0f, 0.0f, b2_);
    widen(p_.scale, p_.D, p_.scale_size, 1.0f, 1.0f, scale_);
  }

  // Rows [begin, end) of `rows` into x_kept, if that is wanted, while they are in cache. Measured: Xeon (Emerald
  // Rapids), two threads, M = 12608, x in fp32 under autocast: a train step takes 0.95 of the time that it takes with a
  // pass of its own.
  template <class Rows>
  void keep_x(const Rows& rows, int64_t begin, int64_t end) const {
    if (!p_.x_kept || begin == end) return;
    const int64_t row = p_.D * element_size(p_.x_kept.dtype);
    char* out = p_.x_kept.data + (rows.first + begin) * row;
    map_pages(out, out + (end - begin) * row, p_.M * row);
    copy_rows(rows.x + begin, end - begin, p_.D, p_.x.dtype, p_.x_kept.dtype, out);
  }

  // A tile of x w1^T, from row m of `rows` and column n on, becomes h, in lines. row: room for one of them in float.
  template <class Rows>
  void hidden_lines(const Rows& rows, int64_t m, int64_t tile, int64_t n, int64_t columns, float* c, float* row,
                    typename Op::Unit* h) const {
    mend<Op>(tile, p_.w1, p_.D, n, columns, p_.dtype, c, [&](int64_t r) {
      widen_row(rows.x[m + r], p_.D, p_.x.dtype, p_.dtype, row);
      return row;
    });
    hidden(rows.first + m, tile, n, columns, c);
    store_lines<Op>(c, tile, n, h + m * lines_of<Op>(p_.H) * kLine<Op>);
  }

  // A tile of h w2^T becomes y.
  template <class Rows>
  void output_lines(const Rows& rows, int64_t m, int64_t tile, int64_t n, int64_t columns, float* c, float* row,
                    const typename Op::Unit* h) const {
    mend<Op>(tile, p_.w2, p_.H, n, columns, p_.dtype, c, [&](int64_t r) {
      const auto* lines = h + m * lines_of<Op>(p_.H) * kLine<Op>;
      for (int64_t j = 0; j < p_.H; j += kNR) store_span(row + j, load_lines<Op>(lines, r, j));
      return row;
    });
    output(rows, m, tile, n, columns, c);
  }

  // The same without mending: bias, scales, skip, residual, rounding.
  template <class Rows>
  void output(const Rows& rows, int64_t m, int64_t tile, int64_t n, int64_t columns, const float* c) const {
    const Span bias = load_span(b2_ + n), scale = load_span(scale_ + n);
    for (int64_t r = 0; r < tile; ++r) {
      Span y = (load_span(c + r * kNR) + bias) * (scale * rows.factors[m + r]);
      if (p_.skip) {
        y = y + (rows.lines ? load_lines<Op>(rows.lines + m * lines_of<Op>(p_.D) * kLine<Op>, r, n)
                            : load_columns(rows.x[m + r], n, columns, p_.x.dtype));
      }
      if (p_.residual) y = y + load_columns(rows.residual[m + r], n, columns, p_.residual.dtype);
      store_columns(rows.y[m + r], n, columns, p_.y.dtype, y);
    }
  }

  // A tile of x w1^T becomes h: bias, z kept if asked, activation, rounding.
  void hidden(int64_t first, int64_t rows, int64_t n, int64_t columns, float* c) const {
    const Span bias = load_span(b1_ + n);
    const int64_t step = p_.H * element_size(p_.z.dtype);
    with_activation(p_.activation, [&](auto activation) {
      using A = decltype(activation);
      for (int64_t r = 0; r < rows; r += kRowsAtOnce) {
        Float v[2 * kRowsAtOnce];
        for (int i = 0; i < kRowsAtOnce; ++i) {
          const Span z = load_span(c + (r + i) * kNR) + bias;
          if (p_.z && r + i < rows) store_columns(p_.z.data + (first + r + i) * step, n, columns, p_.z.dtype, z);
          v[2 * i] = z.low, v[2 * i + 1] = z.high;
        }
        activate<A>(v);
        for (int i = 0; i < kRowsAtOnce; ++i) {
          Span h = {v[2 * i], v[2 * i + 1]};
          if (!Op::kRounds) h = {rounded(h.low, p_.dtype), rounded(h.high, p_.dtype)};
          store_span(c + (r + i) * kNR, h);
        }
      }
    });
    clear_columns(c, rows, columns);
  }

 private:
  const ForwardParams& p_;
  const size_t b1_at_, b2_at_, scale_at_;
  float *b1_ = nullptr, *b2_ = nullptr, *scale_ = nullptr;
};

}  // namespace aim_fast::AIM_FAST_ISA
