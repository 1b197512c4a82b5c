// Fused adapter, forward, on a CPU.
//
//     y = alpha * scale * row_scale * (act(x w1^T + b1) w2^T + b2) [+ x] [+ residual]
//
// Shapes    x, y, residual M rows of D, any strides between them; w1 [H, D]; w2 [D, H]; z [M, H]
// Tiling    a thread owns a block of up to kMaxBlockRows rows; register tiles kMR x kNR, kNR = two vectors
// Flow      1. both weights into panels, all threads                       once a call, or kept from before
//           2. a block of x into lines, converted to the compute dtype,    x from memory
//              and kept so if asked
//           3. z tile by tile, + b1, kept if asked, h = act(z) into lines   h [block, H] stays in cache
//           4. y tile by tile, + b2, scales, + x, + residual, stored       x again, from its lines; y written once
//           few rows: few_forward.h, some hundred: panel_forward.h
// Memory    2 M D s bytes and the weights; scratch: packed weights, and a block of x and h a thread
// Work      4 M D H FLOP
// Rounding  h to the compute dtype and y; sums, bias, activation and scales are fp32
// Source    Adapter of AIM (Yang et al., ICLR 2023)
#pragma once

#include "few_forward.h"
#include "forward_tiles.h"
#include "panel_forward.h"
#include "scratch.h"
#include "steps.h"

namespace aim_fast::AIM_FAST_ISA {

template <class Op>
class Forward {
  using Unit = typename Op::Unit;

 public:
  explicit Forward(const ForwardParams& params)
      : p_(params),
        tiles_(p_, layout_),
        blocks_(cut_rows<Op>(p_.M, p_.threads)),
        lines_d_(lines_of<Op>(p_.D)),
        lines_h_(lines_of<Op>(p_.H)),
        panels_d_(ceil_div(p_.D, kNR)),
        panels_h_(ceil_div(p_.H, kNR)) {}

  void run() {
    if (p_.M <= (p_.packed ? few_rows_packed<Op> : few_rows<Op>)) return FewForward<Op>(p_).run();
    if (!p_.packed && by_panels<Op>(p_, p_.M) && shared_evenly(p_)) return PanelForward<Op>(p_).run();
    const size_t weights = layout_.add(p_.packed ? 0 : packed_bytes());
    char* base = scratch(Scratch::kCall, layout_.size());
    tiles_.fill(base);
    find_panels(p_.packed ? p_.packed : base + weights);
    run_steps(p_, 2, this);
  }

  // Of both weights in panels.
  int64_t packed_bytes() const {
    return (panels_h_ * panel_units(lines_d_) + panels_d_ * panel_units(lines_h_)) * sizeof(Unit);
  }
  void pack(char* out) {
    find_panels(out);
    run_steps(p_, 1, this);
  }

  int64_t tasks(int64_t step) const { return step ? blocks_.count : p_.packed ? 0 : panels_h_ + panels_d_; }
  void task(int64_t step, int64_t i) { step ? block(i) : pack_panel(i); }

 private:
  static int64_t panel_units(int64_t lines) { return lines * kLine<Op> * kNR; }

  void find_panels(const char* packed) {
    w1_ = reinterpret_cast<const Unit*>(packed);
    w2_ = w1_ + panels_h_ * panel_units(lines_d_);
  }

  void pack_panel(int64_t i) {
    // Not those that were packed before.
    Unit *w1 = const_cast<Unit*>(w1_), *w2 = const_cast<Unit*>(w2_);
    if (i < panels_h_) {
      pack_panel_transposed<Op>(p_.w1, p_.H, p_.D, i * kNR, p_.dtype, w1 + i * panel_units(lines_d_));
    } else {
      i -= panels_h_;
      pack_panel_transposed<Op>(p_.w2, p_.D, p_.H, i * kNR, p_.dtype, w2 + i * panel_units(lines_h_));
    }
  }

  // A block of rows, all the way.
  void block(int64_t i) {
    const Matrix matrix;
    Layout layout;
    const size_t x_at = layout.add(bytes_in_lines<Op>(blocks_.rows, p_.D));
    const size_t h_at = layout.add(bytes_in_lines<Op>(blocks_.rows, p_.H));
    const size_t row_at = layout.add(round_up(p_.D < p_.H ? p_.H : p_.D, kNR) * sizeof(float));
    char* base = scratch(Scratch::kBlock, layout.size());
    float* row = reinterpret_cast<float*>(base + row_at);
    Unit* x = reinterpret_cast<Unit*>(base + x_at);
    Unit* h = reinterpret_cast<Unit*>(base + h_at);
    const int64_t first = i * blocks_.rows;
    ForwardRows<Op, kMaxBlockRows> rows(p_, first, least(blocks_.rows, p_.M - first));
    pack_lines<Op>(rows.x, rows.count, p_.D, p_.x.dtype, rounding(p_.x.dtype, p_.dtype), nullptr, x);
    tiles_.keep_x(rows, 0, rows.count);

    if (p_.z) {
      const int64_t z_row = p_.H * element_size(p_.z.dtype);
      map_pages(p_.z.data + first * z_row, p_.z.data + (first + rows.count) * z_row, p_.M * z_row);
    }
    auto hidden_tile = [&](int64_t m, int64_t count, int64_t n, int64_t columns, float* c) {
      tiles_.hidden_lines(rows, m, count, n, columns, c, row, h);
    };
    block_product<Op>(rows.count, p_.H, lines_d_, x, w1_, [](auto...) {}, hidden_tile);

    if (rounding(p_.x.dtype, p_.dtype) == Dtype::kFloat32) rows.lines = x;
    map_rows(rows.y, rows.count, p_.D, p_.M, p_.y.dtype);
    auto fetch_tile = [&](int64_t m, int64_t count, int64_t n) {
      prefetch_columns<For::kWriting>(rows.y + m, count, n, p_.y.dtype);
    };
    auto output_tile = [&](int64_t m, int64_t count, int64_t n, int64_t columns, float* c) {
      tiles_.output_lines(rows, m, count, n, columns, c, row, h);
    };
    block_product<Op>(rows.count, p_.D, lines_h_, h, w2_, fetch_tile, output_tile);
  }

  const ForwardParams& p_;
  Layout layout_;
  ForwardTiles<Op> tiles_;
  const Blocks blocks_;
  const int64_t lines_d_, lines_h_, panels_d_, panels_h_;
  const Unit *w1_ = nullptr, *w2_ = nullptr;
};

}  // namespace aim_fast::AIM_FAST_ISA
