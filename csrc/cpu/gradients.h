// What both ways through the backward share: a tile of hidden gradients, and the sums over rows as results.
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
