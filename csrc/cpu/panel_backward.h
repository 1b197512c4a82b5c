// Backward of some hundred rows: threads share the columns, not the rows. Formulas as in backward.h.
//
// Flow      1. a thread owns panels of hidden columns: all of dy into lines of its own (before, x, where z is computed
//              again); for each panel, w2 packed, dh, dz and h, db1
//           2. a thread owns panels of D: for each, dx, dw1, dw2, db2, dscale
// Order     sums over rows: in registers within a run of rows, then run after run
// Memory    what a thread packs stays in its caches; dz and h go from one to another, in lines and along the rows
// Work      as in backward.h
#pragma once

#include "gradients.h"
#include "mend.h"
#include "panels.h"
#include "steps.h"

namespace aim_fast::AIM_FAST_ISA {

template <class Op>
class PanelBackward {
  using Unit = typename Op::Unit;

 public:
  explicit PanelBackward(const BackwardParams& params)
      : p_(params),
        need_dz_(p_.dx || p_.dw1 || p_.db1),
        need_h_(p_.dw2 || p_.dscale),
        lines_d_(lines_of<Op>(p_.D)),
        lines_h_(lines_of<Op>(p_.H)),
        width_h_(round_up(p_.H, kNR)),
        along_(units_along<Op>(p_.M) * kNR),
        part_h_(width_h_ / kNR * along_) {}

  void run() {
    allocate();
    widen(p_.b1, p_.H, p_.H, 1.0f, 0.0f, b1_);
    widen(p_.b2, p_.D, p_.D, 1.0f, 0.0f, b2_);
    widen(p_.scale, p_.D, p_.scale_size, 1.0f, 1.0f, scale_);
    run_steps(p_, 2, this);
    finish_vectors(p_, scale_, db1_, db2_, dscale_);
  }

  int64_t tasks(int64_t step) const { return step ? ceil_div(p_.D, kNR) : p_.threads; }
  void task(int64_t step, int64_t i) { step ? outer(i * kNR) : hidden(i); }

 private:
  void allocate() {
    Layout layout;
    const auto floats = [&](bool wanted, int64_t n) { return layout.add(wanted ? n * sizeof(float) : 0); };
    const auto lines = [&](bool wanted) { return layout.add(wanted ? bytes_in_lines<Op>(p_.M, p_.H) : 0); };
    const auto along = [&](bool wanted) { return layout.add(wanted ? Op::kParts * part_h_ * sizeof(Unit) : 0); };
    const size_t dz_lines = lines(bool(p_.dx)), h_lines = lines(bool(p_.dscale));
    const size_t dz = along(bool(p_.dw1)), h = along(bool(p_.dw2));
    const size_t z = floats(!p_.z, p_.M * width_h_);
    const size_t b1 = floats(true, width_h_), b2 = floats(true, round_up(p_.D, kNR));
    const size_t scale = floats(true, round_up(p_.D, kNR));
    const size_t db1 = layout.add(width_h_ * sizeof(double));
    const size_t db2 = layout.add(round_up(p_.D, kNR) * sizeof(double));
    const size_t dscale = layout.add(round_up(p_.D, kNR) * sizeof(double));
    char* base = scratch(Scratch::kCall, layout.size());
    const auto unit_at = [&](size_t at) { return reinterpret_cast<Unit*>(base + at); };
    const auto float_at = [&](size_t at) { return reinterpret_cast<float*>(base + at); };
    const auto double_at = [&](size_t at) { return reinterpret_cast<double*>(base + at); };
    dz_lines_ = unit_at(dz_lines), h_lines_ = unit_at(h_lines), dz_ = unit_at(dz), h_ = unit_at(h);
    b1_ = float_at(b1), b2_ = float_at(b2), scale_ = float_at(scale);
    db1_ = double_at(db1), db2_ = double_at(db2), dscale_ = double_at(dscale);
    row_pointers(p_.dy, 0, p_.M, dy_rows_);
    if (p_.x) row_pointers(p_.x, 0, p_.M, x_rows_);
    if (p_.dx) row_pointers(p_.dx, 0, p_.M, dx_rows_);
    row_factors(p_.row_scale, 1.0f, 0, p_.M, factors_);
    z_dtype_ = p_.z ? p_.z.dtype : Dtype::kFloat32;
    for (int64_t m = 0; m < p_.M; ++m) {
      z_rows_[m] =
          p_.z ? p_.z.data + m * p_.H * element_size(z_dtype_) : reinterpret_cast<char*>(float_at(z) + m * width_h_);
    }
  }

  // The i-th of the threads' shares.
  void hidden(int64_t i) {
    const Share panels(p_, i);
    if (panels.first >= panels.end) return;
    const Matrix matrix;
    const ThreadPanel<Op> own(lines_d_, p_.D, bytes_in_lines<Op>(p_.M, p_.D));
    if (!p_.z && (need_dz_ || need_h_)) {
      pack_lines<Op>(x_rows_, p_.M, p_.D, p_.x.dtype, rounding(p_.x.dtype, p_.dtype), nullptr, own.lines);
      for (int64_t first = panels.first; first < panels.end; first += kNR) hidden_again(own, first);
    }
    if (need_dz_) {
      const float* factor = p_.scale ? scale_ : nullptr;
      pack_lines<Op>(dy_rows_, p_.M, p_.D, p_.dy.dtype, Dtype::kFloat32, factor, own.lines);
    }
    if (!need_dz_ && !need_h_) return;
    for (int64_t first = panels.first; first < panels.end; first += kNR) hidden_panel(own, first);
  }

  // z of a panel, from x in lines.
  void hidden_again(const ThreadPanel<Op>& own, int64_t first) {
    pack_panel_transposed<Op>(p_.w1, p_.H, p_.D, first, p_.dtype, own.panel);
    auto tile = [&](int64_t m, int64_t rows, int64_t, int64_t columns, float* c) {
      mend<Op>(rows, p_.w1, p_.D, first, columns, p_.dtype, c, [&](int64_t r) {
        widen_row(x_rows_[m + r], p_.D, p_.x.dtype, p_.dtype, own.row);
        return own.row;
      });
      for (int64_t r = 0; r < rows; ++r) {
        const Span z = load_span(c + r * kNR) + load_span(b1_ + first);
        store_span(reinterpret_cast<float*>(z_rows_[m + r]) + first, z);
      }
    };
    const int64_t columns = least<int64_t>(kNR, p_.H - first);
    block_product<Op>(p_.M, columns, lines_d_, own.lines, own.panel, [](auto...) {}, tile);
  }

  // dz and h of a panel, from dy in lines.
  void hidden_panel(const ThreadPanel<Op>& own, int64_t first) {
    for (int j = 0; j < kNR; ++j) db1_[first + j] = 0.0;
    auto tile = [&](int64_t m, int64_t rows, int64_t, int64_t columns, float* c) {
      alignas(64) float h[kMR * kNR] = {};  // an odd tile pairs its last row with one of zeros
      const Span sum = hidden_gradient(p_, z_rows_ + m, z_dtype_, factors_ + m, rows, first, columns, c, h);
      accumulate(sum, db1_ + first);
      const int64_t line = m * lines_h_ * kLine<Op>, along = first / kNR * along_ + m / Op::kPerUnit * kNR;
      if (p_.dx) store_lines<Op>(c, rows, first, dz_lines_ + line);
      if (p_.dscale) store_lines<Op>(h, rows, first, h_lines_ + line);
      if (p_.dw1) store_left<Op>(c, rows, dz_ + along, part_h_);
      if (p_.dw2) store_left<Op>(h, rows, h_ + along, part_h_);
    };
    if (need_dz_) pack_panel<Op>(p_.w2, p_.D, p_.H, first, p_.dtype, own.panel);
    // Without dz the product over no lines gives dh = 0, and its epilogue h.
    const int64_t columns = least<int64_t>(kNR, p_.H - first);
    block_product<Op>(p_.M, columns, need_dz_ ? lines_d_ : 0, own.lines, own.panel, [](auto...) {}, tile);
  }

  // All that belongs to a panel of D.
  void outer(int64_t first) {
    const Matrix matrix;
    const int64_t columns = least<int64_t>(kNR, p_.D - first);
    // The panel holds one of w1, then a run of rows; the floats a panel of sums.
    const int64_t lines_along = ceil_div(units_along<Op>(kRunRows<Op>), kUnits);
    const ThreadPanel<Op> own(lines_h_ < lines_along ? lines_along : lines_h_, round_up(p_.H, kStep) * kNR);
    if (p_.dx) {
      pack_panel<Op>(p_.w1, p_.H, p_.D, first, p_.dtype, own.panel);
      auto tile = [&](int64_t m, int64_t rows, int64_t, int64_t, float* c) {
        store_dx<Op>(p_, dx_rows_ + m, dy_rows_ + m, nullptr, rows, first, columns, c);
      };
      block_product<Op>(p_.M, columns, lines_h_, dz_lines_, own.panel, [](auto...) {}, tile);
    }
    if (p_.dw1) {
      weights({x_rows_, p_.D, first, p_.x.dtype, rounding(p_.x.dtype, p_.dtype)}, dz_, own);
      store_dw1(p_, first, own.row);
    }
    if (p_.dw2) {
      weights({dy_rows_, p_.D, first, p_.dy.dtype, Dtype::kFloat32}, h_, own);
      store_dw2(p_, first, scale_, own.row);
    }
    for (int j = 0; j < kNR; ++j) db2_[first + j] = dscale_[first + j] = 0.0;
    if (p_.db2) sum_rows(dy_rows_, factors_, p_.M, p_.dy.dtype, first, columns, db2_ + first);
    if (!p_.dscale) return;
    pack_panel_transposed<Op>(p_.w2, p_.D, p_.H, first, p_.dtype, own.panel);
    auto tile = [&](int64_t m, int64_t rows, int64_t, int64_t, float* c) {
      accumulate(branch_gradient(p_, dy_rows_ + m, factors_ + m, rows, first, columns, b2_, c), dscale_ + first);
    };
    block_product<Op>(p_.M, columns, lines_h_, h_lines_, own.panel, [](auto...) {}, tile);
  }

  // own.row [H, kNR] = left^T right.
  void weights(const Columns& right, const Unit* left, const ThreadPanel<Op>& own) const {
    __builtin_memset(own.row, 0, round_up(p_.H, kStep) * kNR * sizeof(float));
    add_rows<Op>(p_.M, kRunRows<Op>, {left, along_, part_h_}, right, p_.H, own.panel, own.row);
  }

  const BackwardParams& p_;
  const bool need_dz_, need_h_;
  const int64_t lines_d_, lines_h_, width_h_;
  const int64_t along_, part_h_;  // strides of the operands along the rows: between panels, between parts
  char *dy_rows_[kMaxPanelRows], *x_rows_[kMaxPanelRows], *dx_rows_[kMaxPanelRows], *z_rows_[kMaxPanelRows];
  float factors_[kMaxPanelRows];
  Dtype z_dtype_;
  Unit *dz_lines_, *h_lines_, *dz_, *h_;
  float *b1_, *b2_, *scale_;
  double *db1_, *db2_, *dscale_;
};

}  // namespace aim_fast::AIM_FAST_ISA
