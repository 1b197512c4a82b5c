// Forward of some hundred rows: threads share the columns, not the rows. Formulas as in forward.h.
//
// Flow      1. a thread owns panels of hidden columns: all of x into lines of its own; for each panel, w1 packed, z, h
//           2. a thread owns panels of D: for each, w2 packed, y
// Memory    what a thread packs stays in its caches; h goes from one to another
// Work      as in forward.h
#pragma once

#include "forward_tiles.h"
#include "panels.h"
#include "steps.h"

namespace aim_fast::AIM_FAST_ISA {

template <class Op>
class PanelForward {
  using Unit = typename Op::Unit;

 public:
  explicit PanelForward(const ForwardParams& p)
      : p_(p), tiles_(p, layout_), rows_(p, 0, p.M), lines_d_(lines_of<Op>(p.D)), lines_h_(lines_of<Op>(p.H)) {}

  void run() {
    const size_t h = layout_.add(bytes_in_lines<Op>(p_.M, p_.H));
    char* base = scratch(Scratch::kCall, layout_.size());
    tiles_.fill(base);
    h_ = reinterpret_cast<Unit*>(base + h);
    run_steps(p_, 2, this);
  }

  int64_t tasks(int64_t step) const { return step ? ceil_div(p_.D, kNR) : p_.threads; }
  void task(int64_t step, int64_t i) { step ? output(i * kNR) : hidden(i); }

 private:
  // The i-th of the threads' shares.
  void hidden(int64_t i) {
    const Share panels(p_, i);
    const Matrix matrix;
    const ThreadPanel<Op> own(lines_d_, p_.D, bytes_in_lines<Op>(p_.M, p_.D));
    pack_lines<Op>(rows_.x, p_.M, p_.D, p_.x.dtype, rounding(p_.x.dtype, p_.dtype), nullptr, own.lines);
    tiles_.keep_x(rows_, i * p_.M / p_.threads, (i + 1) * p_.M / p_.threads);
    for (int64_t first = panels.first; first < panels.end; first += kNR) {
      pack_panel_transposed<Op>(p_.w1, p_.H, p_.D, first, p_.dtype, own.panel);
      auto tile = [&](int64_t m, int64_t count, int64_t n, int64_t columns, float* c) {
        tiles_.hidden_lines(rows_, m, count, first + n, columns, c, own.row, h_);
      };
      block_product<Op>(
          p_.M, least<int64_t>(kNR, panels.end - first), lines_d_, own.lines, own.panel, [](auto...) {}, tile);
    }
  }

  void output(int64_t first) {
    const Matrix matrix;
    const ThreadPanel<Op> own(lines_h_, p_.H);
    pack_panel_transposed<Op>(p_.w2, p_.D, p_.H, first, p_.dtype, own.panel);
    auto tile = [&](int64_t m, int64_t count, int64_t n, int64_t columns, float* c) {
      tiles_.output_lines(rows_, m, count, first + n, columns, c, own.row, h_);
    };
    block_product<Op>(p_.M, least<int64_t>(kNR, p_.D - first), lines_h_, h_, own.panel, [](auto...) {}, tile);
  }

  const ForwardParams& p_;
  Layout layout_;
  ForwardTiles<Op> tiles_;
  const ForwardRows<Op, kMaxPanelRows> rows_;
  const int64_t lines_d_, lines_h_;
  Unit* h_ = nullptr;
};

}  // namespace aim_fast::AIM_FAST_ISA
