// Fused adapter, forward, on a CPU.
//
//     y = alpha * scale * row_scale * (act(x w1^T + b1) w2^T + b2) [+ x] [+ residual]
//
// Shapes    x, y, residual M rows of D, any strides between them; w1 [H, D]; w2 [D, H]; z [M, H]
// Tiling    a thread owns a block of up to kMaxBlockRows rows; register tiles kMR x kNR, kNR = two vectors
// Flow      1. both weights into panels, all threads                       once a call
//           2. a block of x into lines, converted to the compute dtype     x from memory
//           3. z tile by tile, + b1, kept if asked, h = act(z) into lines   h [block, H] stays in cache
//           4. y tile by tile, + b2, scales, + x, + residual, stored       x again, from its lines; y written once
//           up to few_rows: 3 and 4 in floats, on weights as they lie (few.h)
// Memory    2 M D s bytes and the weights; scratch: packed weights, and a block of x and h a thread
// Work      4 M D H FLOP
// Rounding  h to the compute dtype and y; sums, bias, activation and scales are fp32
// Source    Adapter of AIM (Yang et al., ICLR 2023)
#pragma once

#include "activation.h"
#include "few.h"
#include "rows.h"
#include "scratch.h"

namespace aim_fast::AIM_FAST_ISA {

template <class Op>
class Forward {
  using Unit = typename Op::Unit;

 public:
  explicit Forward(const ForwardParams& params)
      : p_(params),
        blocks_(cut_rows(p_.M, p_.threads)),
        lines_d_(lines_of<Op>(p_.D)),
        lines_h_(lines_of<Op>(p_.H)),
        panels_d_(ceil_div(p_.D, kNR)),
        panels_h_(ceil_div(p_.H, kNR)) {}

  void run() {
    const bool few = p_.M <= few_rows<Op>;
    Layout layout;
    const size_t w1 = layout.add(few ? 0 : panels_h_ * panel_units(lines_d_) * sizeof(Unit));
    const size_t w2 = layout.add(few ? 0 : panels_d_ * panel_units(lines_h_) * sizeof(Unit));
    const size_t few_x = layout.add(few ? p_.M * few_ld(p_.D) * sizeof(float) : 0);
    const size_t few_h = layout.add(few ? p_.M * few_ld(p_.H) * sizeof(float) : 0);
    const size_t b1 = layout.add(panels_h_ * kNR * sizeof(float));
    const size_t b2 = layout.add(panels_d_ * kNR * sizeof(float));
    const size_t scale = layout.add(panels_d_ * kNR * sizeof(float));
    char* base = scratch(Scratch::kCall, layout.size());
    w1_ = reinterpret_cast<Unit*>(base + w1);
    w2_ = reinterpret_cast<Unit*>(base + w2);
    b1_ = reinterpret_cast<float*>(base + b1);
    b2_ = reinterpret_cast<float*>(base + b2);
    scale_ = reinterpret_cast<float*>(base + scale);
    widen(p_.b1, p_.H, p_.H, 1.0f, 0.0f, b1_);
    widen(p_.b2, p_.D, p_.D, 1.0f, 0.0f, b2_);
    widen(p_.scale, p_.D, p_.scale_size, 1.0f, 1.0f, scale_);
    if (few) return run_few(reinterpret_cast<float*>(base + few_x), reinterpret_cast<float*>(base + few_h));
    p_.parallel_for(panels_h_ + panels_d_, [](void* self, int64_t i) { static_cast<Forward*>(self)->pack(i); }, this);
    p_.parallel_for(blocks_.count, [](void* self, int64_t i) { static_cast<Forward*>(self)->block(i); }, this);
  }

 private:
  static int64_t panel_units(int64_t lines) { return lines * kUnits * kNR; }
  static int64_t few_ld(int64_t n) { return round_up(n, kNR); }

  // What a block needs of its rows besides x in lines.
  struct Block {
    char *x[kMaxBlockRows], *y[kMaxBlockRows], *residual[kMaxBlockRows];
    const Unit* lines;  // x once more, null where the compute dtype does not hold it exactly
    float factors[kMaxBlockRows];
  };

  void open(int64_t first, int64_t count, Block& rows) const {
    row_pointers(p_.x, first, count, rows.x);
    row_pointers(p_.y, first, count, rows.y);
    if (p_.residual) row_pointers(p_.residual, first, count, rows.residual);
    row_factors(p_.row_scale, p_.alpha, first, count, rows.factors);
    rows.lines = nullptr;
  }

  void pack(int64_t i) {
    if (i < panels_h_) {
      pack_panel_transposed<Op>(p_.w1, p_.H, p_.D, i * kNR, p_.dtype, w1_ + i * panel_units(lines_d_));
    } else {
      i -= panels_h_;
      pack_panel_transposed<Op>(p_.w2, p_.D, p_.H, i * kNR, p_.dtype, w2_ + i * panel_units(lines_h_));
    }
  }

  void block(int64_t i) {
    const int64_t first = i * blocks_.rows, count = least(blocks_.rows, p_.M - first);
    Layout layout;
    const size_t x_at = layout.add(blocks_.rows * lines_d_ * kUnits * sizeof(Unit));
    const size_t h_at = layout.add(blocks_.rows * lines_h_ * kUnits * sizeof(Unit));
    char* base = scratch(Scratch::kBlock, layout.size());
    Unit* x = reinterpret_cast<Unit*>(base + x_at);
    Unit* h = reinterpret_cast<Unit*>(base + h_at);
    Block rows;
    open(first, count, rows);

    pack_lines<Op>(rows.x, count, p_.D, p_.x.dtype, rounding(p_.x.dtype, p_.dtype), nullptr, x);
    auto hidden_tile = [&](int64_t m, int64_t tile, int64_t n, int64_t columns, float* c) {
      hidden(first + m, tile, n, columns, c);
      store_lines<Op>(c, tile, n, h + m * lines_h_ * kUnits);
    };
    block_product<Op>(count, p_.H, lines_d_, x, w1_, [](auto...) {}, hidden_tile);

    if (rounding(p_.x.dtype, p_.dtype) == Dtype::kFloat32) rows.lines = x;
    auto fetch_tile = [&](int64_t m, int64_t tile, int64_t n) {
      prefetch_columns<For::kWriting>(rows.y + m, tile, n, p_.y.dtype);
    };
    auto output_tile = [&](int64_t m, int64_t tile, int64_t n, int64_t columns, float* c) {
      output(rows, m, tile, n, columns, c);
    };
    block_product<Op>(count, p_.D, lines_h_, h, w2_, fetch_tile, output_tile);
  }

  // The same with the weights as they lie, on the calling thread's buffers x and h [M, few_ld], in float.
  void run_few(float* x, float* h) {
    struct Few {
      Forward* self;
      float *x, *h;
      Block rows;
    } few{this, x, h, {}};
    open(0, p_.M, few.rows);
    for (int64_t m = 0; m < p_.M; ++m) {
      for (int64_t n = 0; n < p_.D; n += kNR) {
        float* to = x + m * few_ld(p_.D) + n;
        const Span v = load_columns(few.rows.x[m], n, least<int64_t>(kNR, p_.D - n), p_.x.dtype);
        store_span(to, {rounded(v.low, p_.dtype), rounded(v.high, p_.dtype)});
      }
    }
    p_.parallel_for(
        panels_h_, [](void* f, int64_t i) { static_cast<Few*>(f)->self->few_hidden(*static_cast<Few*>(f), i * kNR); },
        &few);
    p_.parallel_for(
        panels_d_, [](void* f, int64_t i) { static_cast<Few*>(f)->self->few_output(*static_cast<Few*>(f), i * kNR); },
        &few);
  }

  template <class Few>
  void few_hidden(const Few& few, int64_t n) {
    const int64_t ld = few_ld(p_.D), columns = least<int64_t>(kNR, p_.H - n);
    for (int64_t m = 0; m < p_.M; m += kMR) {
      alignas(64) float c[kMR * kNR] = {};
      const int64_t tile = least<int64_t>(kMR, p_.M - m);
      dot_product(few.x + m * ld, ld, tile, p_.w1, p_.D, n, columns, p_.dtype, c);
      hidden(m, tile, n, columns, c);
      for (int64_t r = 0; r < tile; ++r) {
        for (int j = 0; j < kNR; j += kLanes) {
          store_vector(few.h + (m + r) * few_ld(p_.H) + n + j, rounded(load_vector<Float>(c + r * kNR + j), p_.dtype));
        }
      }
    }
  }

  template <class Few>
  void few_output(const Few& few, int64_t n) {
    const int64_t ld = few_ld(p_.H), columns = least<int64_t>(kNR, p_.D - n);
    for (int64_t m = 0; m < p_.M; m += kMR) {
      alignas(64) float c[kMR * kNR] = {};
      const int64_t tile = least<int64_t>(kMR, p_.M - m);
      dot_product(few.h + m * ld, ld, tile, p_.w2, p_.H, n, columns, p_.dtype, c);
      output(few.rows, m, tile, n, columns, c);
    }
  }

  // A tile of h w2^T becomes y: bias, scales, skip, residual, rounding.
  void output(const Block& rows, int64_t m, int64_t tile, int64_t n, int64_t columns, const float* c) const {
    const Span bias = load_span(b2_ + n), scale = load_span(scale_ + n);
    for (int64_t r = 0; r < tile; ++r) {
      Span y = (load_span(c + r * kNR) + bias) * (scale * rows.factors[m + r]);
      if (p_.skip) {
        y = y + (rows.lines ? load_lines<Op>(rows.lines + m * lines_d_ * kUnits, r, n)
                            : load_columns(rows.x[m + r], n, columns, p_.x.dtype));
      }
      if (p_.residual) y = y + load_columns(rows.residual[m + r], n, columns, p_.residual.dtype);
      store_columns(rows.y[m + r], n, columns, p_.y.dtype, y);
    }
  }

  // A tile of x w1^T becomes h: bias, z kept if asked, activation, rounding.
  void hidden(int64_t first, int64_t rows, int64_t n, int64_t columns, float* c) {
    const Span bias = load_span(b1_ + n);
    const int64_t step = p_.H * element_size(p_.z.dtype);
    with_activation(p_.activation, [&](auto activation) {
      using A = decltype(activation);
      for (int64_t r = 0; r < rows; ++r) {
        const Span z = load_span(c + r * kNR) + bias;
        if (p_.z) store_columns(p_.z.data + (first + r) * step, n, columns, p_.z.dtype, z);
        Span h = {A::value(z.low), A::value(z.high)};
        if (Op::kPerUnit == 1) h = {rounded(h.low, p_.dtype), rounded(h.high, p_.dtype)};
        store_span(c + r * kNR, h);
      }
    });
    clear_columns(c, rows, columns);
  }

  const ForwardParams& p_;
  const Blocks blocks_;
  const int64_t lines_d_, lines_h_, panels_d_, panels_h_;
  Unit *w1_ = nullptr, *w2_ = nullptr;
  float *b1_ = nullptr, *b2_ = nullptr, *scale_ = nullptr;
};

}  // namespace aim_fast::AIM_FAST_ISA
