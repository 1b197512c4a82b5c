// Fused adapter, backward, on a CPU.
//
//     dh = alpha row_scale ((scale dy) w2), dz = dh act'(z), h = row_scale act(z), s = sum of row_scale dy
//     dx = dz w1 [+ dy]    dw1 = dz^T x                   db1 = sum of dz
//     G = h^T dy [H, D]    dw2 = alpha scale G^T          db2 = alpha scale s
//     dscale = alpha (sum of row_scale dy f), f computed again: through G it would lose what eager keeps
//
// Shapes    as in forward.h; z [M, H] from the forward, or computed again from x
// Tiling    rows in blocks of up to kMaxBlockRows, cut alike for any number of threads
// Flow      1. weights into panels
//           2. for each group of blocks: a thread owns a block: dy into lines; dz and h tile by tile; dx tile by tile,
//              written once; dz and h also as operands along the rows; partial sums for the biases
//           3. then a thread owns a panel of kNR columns of dw1 or G and adds the group's rows to it, run by run, with
//              the columns of x or dy packed for it alone
//           4. the sums are scaled, transposed and rounded into the results
//           few rows: few_backward.h, some hundred: panel_backward.h
// Order     sums over rows: within a run of blocks in registers, then run after run. No atomics; the threads only
//           choose who.
// Memory    scratch: packed weights, dw1 and G in fp32, a group's dz and h along the rows; a block of lines a thread
// Work      8 M D H FLOP for all gradients, 2 M D H more when z is computed again
// Rounding  operands of the products to bf16 where the products are in bf16; results once
// Source    Adapter of AIM (Yang et al., ICLR 2023)
#pragma once

#include "few_backward.h"
#include "gradients.h"
#include "mend.h"
#include "panel_backward.h"
#include "scratch.h"
#include "steps.h"

namespace aim_fast::AIM_FAST_ISA {

template <class Op>
class Backward {
  using Unit = typename Op::Unit;

 public:
  explicit Backward(const BackwardParams& params)
      : p_(params),
        need_dz_(p_.dx || p_.dw1 || p_.db1),
        need_h_(p_.dw2 || p_.dscale),
        blocks_(cut_rows<Op>(p_.M, kCutFor)),
        run_(ceil_div(kRunRows<Op>, blocks_.rows)),
        group_(p_.dw1 || p_.dw2
                   ? least(blocks_.count, run_ * ceil_div(2 * p_.threads * kMaxBlockRows, run_ * blocks_.rows))
                   : blocks_.count),
        lines_d_(lines_of<Op>(p_.D)),
        lines_h_(lines_of<Op>(p_.H)),
        panels_d_(ceil_div(p_.D, kNR)),
        panels_h_(ceil_div(p_.H, kNR)),
        panel_(group_ * paired_units() * kNR + kUnits),
        part_h_(panels_h_ * panel_) {}

  void run() {
    if (p_.M <= few_rows<Op>) return FewBackward<Op>(p_).run();
    if (by_panels<Op>(p_, p_.M)) return PanelBackward<Op>(p_).run();
    allocate();
    widen(p_.b1, p_.H, p_.H, 1.0f, 0.0f, b1_);
    widen(p_.scale, p_.D, p_.scale_size, 1.0f, 1.0f, scale_);
    widen(p_.b2, p_.D, p_.D, 1.0f, 0.0f, b2_);
    run_steps(p_, last_step() + 1, this);
    finish_vectors(p_, scale_, db1_, db2_, dscale_);
  }

  // Step 0 packs, the last one finishes; between them every group has one for its blocks and one for the sums.
  int64_t tasks(int64_t step) const {
    if (step == 0) return 2 * panels_h_ + panels_d_;
    if (step == last_step()) return panels_d_;
    if (step % 2) return least(group_, blocks_.count - first_block(step));
    return (p_.dw1 || p_.dw2 ? 2 * panels_d_ : 0) + 1;
  }
  void task(int64_t step, int64_t i) {
    if (step == 0) return pack(i);
    if (step == last_step()) return finish(i);
    if (step % 2) return block(i, first_block(step) + i);
    if (i + 1 < tasks(step)) return weights(first_block(step), i);
    vectors(tasks(step - 1));
  }

 private:
  static constexpr int64_t kCutFor = 2;  // threads; any number may come

  // Of a block, in an operand along the rows.
  int64_t paired_units() const { return units_along<Op>(blocks_.rows); }
  static int64_t panel_units(int64_t lines) { return lines * kLine<Op> * kNR; }
  int64_t weight_panel() const { return round_up(p_.H, kStep) * kNR; }

  int64_t last_step() const { return 2 * ceil_div(blocks_.count, group_) + 1; }
  int64_t first_block(int64_t step) const { return (step - 1) / 2 * group_; }

  void allocate() {
    Layout layout;
    auto units = [&](bool wanted, int64_t n) { return layout.add(wanted ? n * sizeof(Unit) : 0); };
    auto floats = [&](bool wanted, int64_t n) { return layout.add(wanted ? n * sizeof(float) : 0); };
    auto doubles = [&](bool wanted, int64_t n) { return layout.add(wanted ? n * sizeof(double) : 0); };
    const bool dx = bool(p_.dx), dw1 = bool(p_.dw1), dw2 = bool(p_.dw2);
    const size_t w1_back = units(dx, panels_d_ * panel_units(lines_h_));
    const size_t w2_back = units(need_dz_, panels_h_ * panel_units(lines_d_));
    const size_t w1 = units(!p_.z, panels_h_ * panel_units(lines_d_));
    const size_t w2 = units(bool(p_.dscale), panels_d_ * panel_units(lines_h_));
    const size_t x_rows = layout.add(!p_.x ? 0 : group_ * blocks_.rows * sizeof(char*));
    const size_t dy_rows = layout.add(group_ * blocks_.rows * sizeof(char*));
    const size_t dz = units(dw1, Op::kParts * part_h_);
    const size_t h = units(dw2, Op::kParts * part_h_);
    const size_t dw1_at = floats(dw1, panels_d_ * weight_panel());
    const size_t g = floats(dw2, panels_d_ * weight_panel());
    const size_t b1 = floats(true, panels_h_ * kNR), b2 = floats(true, panels_d_ * kNR);
    const size_t scale = floats(true, panels_d_ * kNR);
    const size_t db1 = doubles(true, p_.H), db2 = doubles(true, p_.D), dscale = doubles(true, p_.D);
    const size_t db1_parts = doubles(bool(p_.db1), group_ * panels_h_ * kNR);
    const size_t db2_parts = doubles(bool(p_.db2), group_ * panels_d_ * kNR);
    const size_t dscale_parts = doubles(bool(p_.dscale), group_ * panels_d_ * kNR);
    char* base = scratch(Scratch::kCall, layout.size());
    auto unit_at = [&](size_t at) { return reinterpret_cast<Unit*>(base + at); };
    auto float_at = [&](size_t at) { return reinterpret_cast<float*>(base + at); };
    auto double_at = [&](size_t at) { return reinterpret_cast<double*>(base + at); };
    w1_back_ = unit_at(w1_back), w2_back_ = unit_at(w2_back), w1_ = unit_at(w1), w2_ = unit_at(w2);
    x_rows_ = reinterpret_cast<char**>(base + x_rows), dy_rows_ = reinterpret_cast<char**>(base + dy_rows);
    dz_ = unit_at(dz), h_ = unit_at(h);
    dw1_ = float_at(dw1_at), g_ = float_at(g), b1_ = float_at(b1), b2_ = float_at(b2), scale_ = float_at(scale);
    db1_ = double_at(db1), db2_ = double_at(db2), dscale_ = double_at(dscale);
    db1_parts_ = double_at(db1_parts), db2_parts_ = double_at(db2_parts), dscale_parts_ = double_at(dscale_parts);
    for (int64_t h = 0; h < p_.H; ++h) db1_[h] = 0.0;
    for (int64_t d = 0; d < p_.D; ++d) db2_[d] = dscale_[d] = 0.0;
  }

  template <class T>
  static void zero(T* p, int64_t n) {
    __builtin_memset(p, 0, n * sizeof(T));
  }
  static void add(const double* from, int64_t n, double* to) {
    for (int64_t i = 0; i < n; ++i) to[i] += from[i];
  }

  // The group's blocks to the sums of vectors, one after the other.
  void vectors(int64_t blocks) {
    for (int64_t i = 0; i < blocks; ++i) {
      if (p_.db1) add(db1_parts_ + i * panels_h_ * kNR, p_.H, db1_);
      if (p_.db2) add(db2_parts_ + i * panels_d_ * kNR, p_.D, db2_);
      if (p_.dscale) add(dscale_parts_ + i * panels_d_ * kNR, p_.D, dscale_);
    }
  }

  void pack(int64_t i) {
    if (i < panels_h_) {
      if (need_dz_) pack_panel<Op>(p_.w2, p_.D, p_.H, i * kNR, p_.dtype, w2_back_ + i * panel_units(lines_d_));
    } else if (i < 2 * panels_h_) {
      i -= panels_h_;
      if (!p_.z) pack_panel_transposed<Op>(p_.w1, p_.H, p_.D, i * kNR, p_.dtype, w1_ + i * panel_units(lines_d_));
    } else {
      i -= 2 * panels_h_;
      if (p_.dx) pack_panel<Op>(p_.w1, p_.H, p_.D, i * kNR, p_.dtype, w1_back_ + i * panel_units(lines_h_));
      if (p_.dw1) zero(dw1_ + i * weight_panel(), weight_panel());
      if (p_.dscale) {
        pack_panel_transposed<Op>(p_.w2, p_.D, p_.H, i * kNR, p_.dtype, w2_ + i * panel_units(lines_h_));
      }
      if (p_.dw2) zero(g_ + i * weight_panel(), weight_panel());
    }
  }

  // Block `index`, the i-th of its group.
  void block(int64_t i, int64_t index) {
    const Matrix matrix;
    const int64_t first = index * blocks_.rows, count = least(blocks_.rows, p_.M - first);
    Layout layout;
    const size_t d_at = layout.add(bytes_in_lines<Op>(blocks_.rows, p_.D));
    const size_t h_at = layout.add(bytes_in_lines<Op>(blocks_.rows, p_.H));
    const size_t f_at = layout.add(p_.dscale ? bytes_in_lines<Op>(blocks_.rows, p_.H) : 0);
    const size_t z_at = layout.add(p_.z ? 0 : blocks_.rows * panels_h_ * kNR * sizeof(float));
    const size_t row_at = layout.add(p_.z ? 0 : panels_d_ * kNR * sizeof(float));
    char* base = scratch(Scratch::kBlock, layout.size());
    float* row = reinterpret_cast<float*>(base + row_at);
    Unit* lines = reinterpret_cast<Unit*>(base + d_at);
    Unit* dz = reinterpret_cast<Unit*>(base + h_at);
    Unit* h_lines = reinterpret_cast<Unit*>(base + f_at);
    float* z_again = reinterpret_cast<float*>(base + z_at);

    char **dy_rows = dy_rows_ + i * blocks_.rows, **x_rows = x_rows_ + i * blocks_.rows;
    char *dx_rows[kMaxBlockRows], *z_rows[kMaxBlockRows];
    float factors[kMaxBlockRows];
    const Dtype z_dtype = p_.z ? p_.z.dtype : Dtype::kFloat32;
    row_pointers(p_.dy, first, count, dy_rows);
    if (p_.x) row_pointers(p_.x, first, count, x_rows);
    if (p_.dx) row_pointers(p_.dx, first, count, dx_rows);
    row_factors(p_.row_scale, 1.0f, first, count, factors);
    for (int64_t r = 0; r < count; ++r) {
      z_rows[r] = p_.z ? p_.z.data + (first + r) * p_.H * element_size(z_dtype)
                       : reinterpret_cast<char*>(z_again + r * panels_h_ * kNR);
    }
    if (!p_.z && (need_dz_ || need_h_)) {
      pack_lines<Op>(x_rows, count, p_.D, p_.x.dtype, rounding(p_.x.dtype, p_.dtype), nullptr, lines);
      auto z_tile = [&](int64_t m, int64_t rows, int64_t n, int64_t columns, float* c) {
        mend<Op>(rows, p_.w1, p_.D, n, columns, p_.dtype, c, [&](int64_t r) {
          widen_row(x_rows[m + r], p_.D, p_.x.dtype, p_.dtype, row);
          return row;
        });
        for (int64_t r = 0; r < rows; ++r) {
          store_span(z_again + (m + r) * panels_h_ * kNR + n, load_span(c + r * kNR) + load_span(b1_ + n));
        }
      };
      block_product<Op>(count, p_.H, lines_d_, lines, w1_, [](auto...) {}, z_tile);
    }
    if (p_.db2) {
      double* db2 = db2_parts_ + i * panels_d_ * kNR;
      zero(db2, panels_d_ * kNR);
      for (int64_t m = 0; m < count; m += kMR) {
        for (int64_t n = 0; n < p_.D; n += kNR) {
          const int64_t tile = least<int64_t>(kMR, count - m), columns = least<int64_t>(kNR, p_.D - n);
          sum_rows(dy_rows + m, factors + m, tile, p_.dy.dtype, n, columns, db2 + n);
        }
      }
    }
    if (!need_dz_ && !need_h_) return;

    if (need_dz_) {
      pack_lines<Op>(dy_rows, count, p_.D, p_.dy.dtype, Dtype::kFloat32, p_.scale ? scale_ : nullptr, lines);
    }
    double* db1 = p_.db1 ? db1_parts_ + i * panels_h_ * kNR : nullptr;
    if (db1) zero(db1, panels_h_ * kNR);
    auto hidden_tile = [&](int64_t m, int64_t rows, int64_t n, int64_t columns, float* c) {
      alignas(64) float h[kMR * kNR] = {};  // an odd tile pairs its last row with one of zeros
      const Span sum = hidden_gradient(p_, z_rows + m, z_dtype, factors + m, rows, n, columns, c, h);
      if (db1) accumulate(sum, db1 + n);
      if (p_.dx) store_lines<Op>(c, rows, n, dz + m * lines_h_ * kLine<Op>);
      if (p_.dscale) store_lines<Op>(h, rows, n, h_lines + m * lines_h_ * kLine<Op>);
      const int64_t along = n / kNR * panel_ + (i * paired_units() + m / Op::kPerUnit) * kNR;
      if (p_.dw1) store_left<Op>(c, rows, dz_ + along, part_h_);
      if (p_.dw2) store_left<Op>(h, rows, h_ + along, part_h_);
    };
    // Without dz the product over no lines gives dh = 0, and its epilogue h.
    block_product<Op>(count, p_.H, need_dz_ ? lines_d_ : 0, lines, w2_back_, [](auto...) {}, hidden_tile);
    if (p_.dscale) {
      double* dscale = dscale_parts_ + i * panels_d_ * kNR;
      zero(dscale, panels_d_ * kNR);
      auto f_tile = [&](int64_t m, int64_t rows, int64_t n, int64_t columns, float* c) {
        accumulate(branch_gradient(p_, dy_rows + m, factors + m, rows, n, columns, b2_, c), dscale + n);
      };
      block_product<Op>(count, p_.D, lines_h_, h_lines, w2_, [](auto...) {}, f_tile);
    }
    if (!p_.dx) return;

    map_rows(dx_rows, count, p_.D, p_.M, p_.dx.dtype);
    const bool exact = !p_.scale && Op::holds(p_.dy.dtype);  // dy as it is in its lines
    // The dy that the block after this one reads; near the end, this block's again.
    char* next_dy[kMaxBlockRows];
    const int64_t ahead = first + p_.threads * blocks_.rows, next = ahead + count <= p_.M ? ahead : first;
    constexpr bool kFetch = Op::kParts == 1;
    if (kFetch) row_pointers(p_.dy, next, count, next_dy);
    auto fetch_tile = [&](int64_t m, int64_t rows, int64_t n) {
      prefetch_columns<For::kWriting>(dx_rows + m, rows, n, p_.dx.dtype);
      if constexpr (!kFetch) return;
      prefetch_columns<For::kReading>(next_dy + m, rows, n, p_.dy.dtype);
    };
    auto dx_tile = [&](int64_t m, int64_t rows, int64_t n, int64_t columns, float* c) {
      const Unit* tile = exact ? lines + m * lines_d_ * kLine<Op> : nullptr;
      store_dx<Op>(p_, dx_rows + m, dy_rows + m, tile, rows, n, columns, c);
    };
    block_product<Op>(count, p_.D, lines_h_, dz, w1_back_, fetch_tile, dx_tile);
  }

  // Panel i of dw1, or of G, gains the rows of the group that begins with this block.
  void weights(int64_t first_block, int64_t i) {
    const Matrix matrix;
    const bool of_w1 = i < panels_d_;
    if (!(of_w1 ? p_.dw1 : p_.dw2)) return;
    i %= panels_d_;
    const Unit* left = of_w1 ? dz_ : h_;
    const Columns right = of_w1 ? Columns{x_rows_, p_.D, i * kNR, p_.x.dtype, rounding(p_.x.dtype, p_.dtype)}
                                : Columns{dy_rows_, p_.D, i * kNR, p_.dy.dtype, Dtype::kFloat32};
    float* sums = (of_w1 ? dw1_ : g_) + i * weight_panel();
    const int64_t rows = least(group_ * blocks_.rows, p_.M - first_block * blocks_.rows);
    const int64_t run = run_ * blocks_.rows;
    Unit* panel =
        reinterpret_cast<Unit*>(scratch(Scratch::kBlock, Op::kParts * units_along<Op>(run) * kNR * sizeof(Unit)));
    add_rows<Op>(rows, run, {left, panel_, part_h_}, right, p_.H, panel, sums);
  }

  // Panel i of the sums into the results.
  void finish(int64_t i) {
    if (p_.dw1) store_dw1(p_, i * kNR, dw1_ + i * weight_panel());
    if (p_.dw2) store_dw2(p_, i * kNR, scale_, g_ + i * weight_panel());
  }

  const BackwardParams& p_;
  const bool need_dz_, need_h_;
  const Blocks blocks_;
  // Blocks that follow each other without a gap in a sum long enough to pay for fetching the tile it goes to. Groups
  // hold whole runs, so that the sums do not depend on the number of threads.
  const int64_t run_;
  const int64_t group_;  // blocks that share the operands along the rows
  const int64_t lines_d_, lines_h_, panels_d_, panels_h_;
  const int64_t panel_, part_h_;  // strides of the operands along the rows
  Unit *w1_back_, *w2_back_, *w1_, *w2_, *dz_, *h_;
  char **x_rows_, **dy_rows_;  // of the group
  float *dw1_, *g_, *b1_, *b2_, *scale_;
  double *db1_, *db2_, *dscale_, *db1_parts_, *db2_parts_, *dscale_parts_;
};

}  // namespace aim_fast::AIM_FAST_ISA
