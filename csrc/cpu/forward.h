// Fused adapter, forward, on a CPU.
//
//     y = alpha * scale * row_scale * (act(x w1^T + b1) w2^T + b2) [+ x] [+ residual]
//
// Shapes    x, y, residual M rows of D, any strides between them; w1 [H, D]; w2 [D, H]; z [M, H]
// Tiling    a thread owns a block of up to kMaxBlockRows rows; register tiles kMR x kNR, kNR = two vectors
// Flow      1. both weights into panels, all threads                       once a call
//           2. a block of x into lines, converted to the compute dtype     x from memory
//           3. z tile by tile, + b1, kept if asked, h = act(z) into lines   h [block, H] stays in cache
//           4. y tile by tile, + b2, scales, + x, + residual, stored       x again, from cache; y written once
// Memory    2 M D s bytes and the weights; scratch: packed weights, and a block of x and h a thread
// Work      4 M D H FLOP
// Rounding  h to the compute dtype and y; sums, bias, activation and scales are fp32
// Source    Adapter of AIM (Yang et al., ICLR 2023)
#pragma once

#include "activation.h"
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
    Layout layout;
    const size_t w1 = layout.add(panels_h_ * panel_units(lines_d_) * sizeof(Unit));
    const size_t w2 = layout.add(panels_d_ * panel_units(lines_h_) * sizeof(Unit));
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
    p_.parallel_for(panels_h_ + panels_d_, [](void* self, int64_t i) { static_cast<Forward*>(self)->pack(i); }, this);
    p_.parallel_for(blocks_.count, [](void* self, int64_t i) { static_cast<Forward*>(self)->block(i); }, this);
  }

 private:
  static int64_t panel_units(int64_t lines) { return lines * kUnits * kNR; }

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
    char *x_rows[kMaxBlockRows], *y_rows[kMaxBlockRows], *residual_rows[kMaxBlockRows];
    float factors[kMaxBlockRows];
    row_pointers(p_.x, first, count, x_rows);
    row_pointers(p_.y, first, count, y_rows);
    if (p_.residual) row_pointers(p_.residual, first, count, residual_rows);
    row_factors(p_.row_scale, p_.alpha, first, count, factors);

    pack_lines<Op>(x_rows, count, p_.D, p_.x.dtype, rounding(p_.x.dtype, p_.dtype), nullptr, x);
    auto hidden_tile = [&](int64_t m, int64_t rows, int64_t n, int64_t columns, float* c) {
      hidden(first + m, rows, n, columns, c);
      store_lines<Op>(c, rows, n, h + m * lines_h_ * kUnits);
    };
    block_product<Op>(count, p_.H, lines_d_, x, w1_, [](int64_t, int64_t) {}, hidden_tile);

    auto ask = [&](int64_t m, int64_t n) {
      prefetch<1>(y_rows[m], n, p_.y.dtype);
      if (p_.skip) prefetch<0>(x_rows[m], n, p_.x.dtype);
      if (p_.residual) prefetch<0>(residual_rows[m], n, p_.residual.dtype);
    };
    auto output_tile = [&](int64_t m, int64_t rows, int64_t n, int64_t columns, float* c) {
      const Float b0 = load_vector<Float>(b2_ + n), b1 = load_vector<Float>(b2_ + n + kLanes);
      const Float s0 = load_vector<Float>(scale_ + n), s1 = load_vector<Float>(scale_ + n + kLanes);
      for (int64_t r = 0; r < rows; ++r) {
        float* f = c + r * kNR;
        store_vector(f, (load_vector<Float>(f) + b0) * (s0 * factors[m + r]));
        store_vector(f + kLanes, (load_vector<Float>(f + kLanes) + b1) * (s1 * factors[m + r]));
      }
      if (p_.skip) add_rows(c, x_rows + m, rows, n, columns, p_.x.dtype);
      if (p_.residual) add_rows(c, residual_rows + m, rows, n, columns, p_.residual.dtype);
      store_rows(c, y_rows + m, rows, n, columns, p_.y.dtype);
    };
    block_product<Op>(count, p_.D, lines_h_, h, w2_, ask, output_tile);
  }

  // A tile of x w1^T becomes h: bias, z kept if asked, activation, rounding.
  void hidden(int64_t first, int64_t rows, int64_t n, int64_t columns, float* c) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int j = 0; j < kNR; j += kLanes) {
        store_vector(c + r * kNR + j, load_vector<Float>(c + r * kNR + j) + load_vector<Float>(b1_ + n + j));
      }
    }
    if (p_.z) {
      char* z_rows[kMR];
      for (int64_t r = 0; r < rows; ++r) z_rows[r] = p_.z.data + (first + r) * p_.H * element_size(p_.z.dtype);
      store_rows(c, z_rows, rows, n, columns, p_.z.dtype);
    }
    with_activation(p_.activation, [&](auto activation) {
      for (int64_t i = 0; i < rows * kNR; i += kLanes) {
        Float h = decltype(activation)::value(load_vector<Float>(c + i));
        store_vector(c + i, Op::kPerUnit == 2 ? h : rounded(h, p_.dtype));
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
