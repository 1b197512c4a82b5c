// Backward of a few rows, with the weights as they lie and everything in float. Formulas as in backward.h.
//
// Flow      1. x and dy of all rows to float, on the calling thread
//           2. a thread owns a panel of hidden columns: dh, dz, h, db1
//           3. a thread owns a panel of D: dx, rows of dw2, db2, dscale; or kNR rows of dw1
// Order     sums over rows in the order of the rows
// Memory    scratch: x, dy, dz and h in float
// Work      as in backward.h; each weight is read once and each gradient written once, row by row
#pragma once

#include "few.h"
#include "gradients.h"
#include "scratch.h"
#include "steps.h"

namespace aim_fast::AIM_FAST_ISA {

template <class Op>
class FewBackward {
 public:
  explicit FewBackward(const BackwardParams& params)
      : p_(params),
        need_dz_(p_.dx || p_.dw1 || p_.db1),
        need_h_(p_.dw2 || p_.dscale),
        panels_d_(ceil_div(p_.D, kNR)),
        panels_h_(ceil_div(p_.H, kNR)),
        ld_d_(panels_d_ * kNR),
        ld_h_(panels_h_ * kNR) {}

  void run() {
    allocate();
    run_steps(p_, 2, this);
    finish_vectors(p_, scale_, db1_, db2_, dscale_);
  }

  int64_t tasks(int64_t step) const {
    if (step == 0) return need_dz_ || need_h_ ? panels_h_ : 0;
    return panels_d_ + (p_.dw1 ? panels_h_ : 0);
  }
  void task(int64_t step, int64_t i) { step ? outer(i) : hidden(i); }

 private:
  static constexpr int64_t kMaxRows = few_rows<Op>;

  void allocate() {
    Layout layout;
    auto floats = [&](bool wanted, int64_t n) { return layout.add(wanted ? n * sizeof(float) : 0); };
    auto doubles = [&](int64_t n) { return layout.add(n * sizeof(double)); };
    const bool with_x = p_.dw1 || (!p_.z && (need_dz_ || need_h_));
    const size_t x = floats(with_x, p_.M * ld_d_), dy = floats(true, p_.M * ld_d_);
    const size_t scaled = floats(bool(p_.scale), p_.M * ld_d_);
    const size_t z = floats(!p_.z, p_.M * ld_h_);
    const size_t dz = floats(true, p_.M * ld_h_), h = floats(true, p_.M * ld_h_);
    const size_t b1 = floats(true, ld_h_), b2 = floats(true, ld_d_), scale = floats(true, ld_d_);
    const size_t db1 = doubles(ld_h_), db2 = doubles(ld_d_), dscale = doubles(ld_d_);
    char* base = scratch(Scratch::kCall, layout.size());
    const auto at = [&](size_t place) { return reinterpret_cast<float*>(base + place); };
    x_ = at(x), dy_ = at(dy), scaled_ = p_.scale ? at(scaled) : dy_, z_ = at(z), dz_ = at(dz), h_ = at(h);
    b1_ = at(b1), b2_ = at(b2), scale_ = at(scale);
    db1_ = reinterpret_cast<double*>(base + db1), db2_ = reinterpret_cast<double*>(base + db2);
    dscale_ = reinterpret_cast<double*>(base + dscale);
    widen(p_.b1, p_.H, p_.H, 1.0f, 0.0f, b1_);
    widen(p_.b2, p_.D, p_.D, 1.0f, 0.0f, b2_);
    widen(p_.scale, p_.D, p_.scale_size, 1.0f, 1.0f, scale_);
    row_pointers(p_.dy, 0, p_.M, dy_rows_);
    if (p_.dx) row_pointers(p_.dx, 0, p_.M, dx_rows_);
    row_factors(p_.row_scale, 1.0f, 0, p_.M, factors_);
    char* x_rows[kMaxRows];
    if (with_x) row_pointers(p_.x, 0, p_.M, x_rows);
    for (int64_t m = 0; m < p_.M; ++m) {
      float *dy = dy_ + m * ld_d_, *scaled = scaled_ + m * ld_d_;
      widen_row(dy_rows_[m], p_.D, p_.dy.dtype, Dtype::kFloat32, dy);
      if (with_x) widen_row(x_rows[m], p_.D, p_.x.dtype, p_.dtype, x_ + m * ld_d_);
      if (!p_.scale) continue;
      for (int64_t n = 0; n < p_.D; n += kNR) store_span(scaled + n, load_span(dy + n) * load_span(scale_ + n));
    }
  }

  // Panel i of the hidden columns.
  void hidden(int64_t i) {
    const int64_t n = i * kNR, columns = least<int64_t>(kNR, p_.H - n);
    const Dtype z_dtype = p_.z ? p_.z.dtype : Dtype::kFloat32;
    alignas(64) float c[kMaxRows * kNR] = {}, h[kMaxRows * kNR];
    char* z_rows[kMaxRows];
    for (int64_t m = 0; m < p_.M; ++m) {
      z_rows[m] = p_.z ? p_.z.data + m * p_.H * element_size(z_dtype) : reinterpret_cast<char*>(z_ + m * ld_h_);
    }
    if (!p_.z) {
      dot_product(x_, ld_d_, p_.M, p_.w1, p_.D, n, columns, p_.dtype, c);
      for (int64_t m = 0; m < p_.M; ++m) store_span(z_ + m * ld_h_ + n, load_span(c + m * kNR) + load_span(b1_ + n));
    }
    if (need_dz_) row_product(scaled_, ld_d_, p_.M, p_.w2, p_.D, p_.H, n, columns, p_.dtype, c);
    const Span sum = hidden_gradient(p_, z_rows, z_dtype, factors_, p_.M, n, columns, c, h);
    for (int j = 0; j < kLanes; ++j) db1_[n + j] = sum.low[j], db1_[n + kLanes + j] = sum.high[j];
    for (int64_t m = 0; m < p_.M; ++m) {
      store_span(dz_ + m * ld_h_ + n, load_span(c + m * kNR));
      store_span(h_ + m * ld_h_ + n, load_span(h + m * kNR));
    }
  }

  // Panel i of D, or kNR rows of dw1.
  void outer(int64_t i) {
    if (i >= panels_d_) {
      const int64_t first = (i - panels_d_) * kNR;
      for (int64_t n = first; n < least(first + kNR, p_.H); ++n) {
        outer_row(dz_ + n, ld_h_, x_, ld_d_, p_.D, 1.0f, p_.dw1, n);
      }
      return;
    }
    const int64_t n = i * kNR, columns = least<int64_t>(kNR, p_.D - n);
    if (p_.dx) {
      alignas(64) float c[kMaxRows * kNR];
      row_product(dz_, ld_h_, p_.M, p_.w1, p_.H, p_.D, n, columns, p_.dtype, c);
      for (int64_t m = 0; m < p_.M; ++m) {
        Span dx = load_span(c + m * kNR);
        if (p_.skip) dx = dx + load_span(dy_ + m * ld_d_ + n);
        store_columns(dx_rows_[m], n, columns, p_.dx.dtype, dx);
      }
    }
    if (p_.dw2) {
      for (int64_t d = n; d < n + columns; ++d)
        outer_row(dy_ + d, ld_d_, h_, ld_h_, p_.H, p_.alpha * scale_[d], p_.dw2, d);
    }
    if (!p_.db2 && !p_.dscale) return;
    alignas(64) float f[kMaxRows * kNR] = {};
    if (p_.dscale) dot_product(h_, ld_h_, p_.M, p_.w2, p_.H, n, columns, p_.dtype, f);
    for (int64_t d = n; d < n + columns; ++d) {
      db2_[d] = dscale_[d] = 0.0;
      for (int64_t m = 0; m < p_.M; ++m) {
        const double dy = dy_[m * ld_d_ + d];
        db2_[d] += dy * factors_[m];
        dscale_[d] += dy * (f[m * kNR + d - n] + b2_[d] * factors_[m]);
      }
    }
  }

  // Row `to` of out [.., n] = factor * sum over rows m of u[m * ldu] * b[m].
  void outer_row(const float* u, int64_t ldu, const float* b, int64_t ldb, int64_t n, float factor, const Array& out,
                 int64_t to) const {
    char* row = out.data + to * n * element_size(out.dtype);
    for (int64_t j = 0; j < n; j += kNR) {
      Span sum{};
      for (int64_t m = 0; m < p_.M; ++m) sum = sum + load_span(b + m * ldb + j) * u[m * ldu];
      store_columns(row, j, least<int64_t>(kNR, n - j), out.dtype, sum * factor);
    }
  }

  const BackwardParams& p_;
  const bool need_dz_, need_h_;
  const int64_t panels_d_, panels_h_, ld_d_, ld_h_;
  char *dy_rows_[kMaxRows], *dx_rows_[kMaxRows];
  float factors_[kMaxRows];
  float *x_, *dy_, *scaled_, *z_, *dz_, *h_, *b1_, *b2_, *scale_;
  double *db1_, *db2_, *dscale_;
};

}  // namespace aim_fast::AIM_FAST_ISA
