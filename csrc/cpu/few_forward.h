// Forward of a few rows, with the weights as they lie and the products in float. Formulas as in forward.h.
//
// Flow      1. x of all rows to float, on the calling thread
//           2. a thread owns a panel of hidden columns: z, h
//           3. a thread owns a panel of D: y
// Work      as in forward.h; each weight is read once
#pragma once

#include "few.h"
#include "forward_tiles.h"
#include "steps.h"

namespace aim_fast::AIM_FAST_ISA {

template <class Op>
class FewForward {
 public:
  explicit FewForward(const ForwardParams& p)
      : p_(p), tiles_(p, layout_), rows_(p, 0, p.M), ld_d_(round_up(p.D, kNR)), ld_h_(round_up(p.H, kNR)) {}

  void run() {
    const size_t x = layout_.add(p_.M * ld_d_ * sizeof(float)), h = layout_.add(p_.M * ld_h_ * sizeof(float));
    char* base = scratch(Scratch::kCall, layout_.size());
    tiles_.fill(base);
    x_ = reinterpret_cast<float*>(base + x), h_ = reinterpret_cast<float*>(base + h);
    for (int64_t m = 0; m < p_.M; ++m) widen_row(rows_.x[m], p_.D, p_.x.dtype, p_.dtype, x_ + m * ld_d_);
    tiles_.keep_x(rows_, 0, p_.M);
    run_steps(p_, 2, this);
  }

  int64_t tasks(int64_t step) const { return (step ? ld_d_ : ld_h_) / kNR; }
  void task(int64_t step, int64_t i) { step ? output(i * kNR) : hidden(i * kNR); }

 private:
  void hidden(int64_t n) {
    const int64_t columns = least<int64_t>(kNR, p_.H - n);
    alignas(64) float c[few_rows<Op> * kNR] = {};
    dot_product(x_, ld_d_, p_.M, p_.w1, p_.D, n, columns, p_.dtype, c);
    tiles_.hidden(0, p_.M, n, columns, c);
    for (int64_t m = 0; m < p_.M; ++m) {
      const Span h = load_span(c + m * kNR);
      store_span(h_ + m * ld_h_ + n, {rounded(h.low, p_.dtype), rounded(h.high, p_.dtype)});
    }
  }

  void output(int64_t n) {
    const int64_t columns = least<int64_t>(kNR, p_.D - n);
    alignas(64) float c[few_rows<Op> * kNR] = {};
    dot_product(h_, ld_h_, p_.M, p_.w2, p_.H, n, columns, p_.dtype, c);
    tiles_.output(rows_, 0, p_.M, n, columns, c);
  }

  const ForwardParams& p_;
  Layout layout_;
  ForwardTiles<Op> tiles_;
  const ForwardRows<Op, few_rows<Op>> rows_;
  const int64_t ld_d_, ld_h_;
  float *x_ = nullptr, *h_ = nullptr;
};

}  // namespace aim_fast::AIM_FAST_ISA
