// What becomes of four neighbouring elements (m, n) to (m, n + 3) of each product by rows.
//
//     forward   z = x w1^T + b1, h = act(z)
//               y = factor * (h w2^T + b2)  [+ x] [+ residual]
//     K1        dz = factor * (dy w2) * act'(z), h = row_scale * act(z)
//               dx = dz w1  [+ dy]
//
//     Factor    alpha * scale * row_scale; a wide scale is in K1's w2 already
//     Shapes    x, y, residual, dy, dx [M, D] by rows of any strides; w1 [H, D]; w2 [D, H]; z, h, dz [M, H] in T
//     Rounding  z as it is stored, h, dz, y, dx, once each; act takes z unrounded
#pragma once

#include "cuda/activation.h"
#include "cuda/tiles/product.h"
#include "cuda/vectors.h"

namespace aim_fast::cuda::tiles {

AIM_DEVICE float row_factor(const DeviceRows& row_scale, int64_t m) {
  return row_scale ? load_float(row_scale.row(static_cast<uint32_t>(m)), row_scale.dtype, 0) : 1.f;
}

AIM_DEVICE void add(float (&to)[kFour], const DeviceRows& rows, int64_t m, int64_t n) {
  if (!rows) return;
  float more[kFour];
  load_four(rows.row(static_cast<uint32_t>(m)), rows.dtype, n, more);
#pragma unroll
  for (int i = 0; i < kFour; ++i) to[i] += more[i];
}

template <class T>
struct Hidden {
  Array b1;
  Activation activation;
  char *z, *h;  // [M, H]; z may be absent
  int64_t H;

  AIM_DEVICE void operator()(int64_t m, int64_t n, float (&v)[kFour]) const {
    float bias[kFour] = {};
    if (b1) load_four(b1.data, b1.dtype, n, bias);
#pragma unroll
    for (int i = 0; i < kFour; ++i) v[i] += bias[i];
    if (z) store_four(z, kDtype<T>, m * H + n, v);
    activate<T>(activation, v);
    store_four(h, kDtype<T>, m * H + n, v);
  }
};

struct Output {
  Array b2, scale;
  bool wide_scale;
  float alpha;
  DeviceRows row_scale, x, residual, y;  // x where it is to be added

  AIM_DEVICE void operator()(int64_t m, int64_t n, float (&v)[kFour]) const {
    float bias[kFour] = {}, factor[kFour] = {1.f, 1.f, 1.f, 1.f};
    if (b2) load_four(b2.data, b2.dtype, n, bias);
    if (wide_scale) load_four(scale.data, scale.dtype, n, factor);
    const float common = alpha * (scale && !wide_scale ? load_float(scale.data, scale.dtype, 0) : 1.f);
    const float of_row = common * row_factor(row_scale, m);
#pragma unroll
    for (int i = 0; i < kFour; ++i) v[i] = of_row * factor[i] * (v[i] + bias[i]);
    add(v, x, m, n);
    add(v, residual, m, n);
    store_four(y.row(static_cast<uint32_t>(m)), y.dtype, n, v);
  }
};

template <class T>
struct HiddenBackward {
  Array scale;  // of one element
  float alpha;
  Activation activation;
  DeviceRows row_scale;
  const char* z;
  char *dz, *h;  // [M, H]; each may be absent
  int64_t H;

  AIM_DEVICE void operator()(int64_t m, int64_t n, float (&dh)[kFour]) const {
    const float of_row = row_factor(row_scale, m);
    const float factor = alpha * (scale ? load_float(scale.data, scale.dtype, 0) : 1.f) * of_row;
    float v[kFour];
    load_four(z, kDtype<T>, m * H + n, v);
#pragma unroll
    for (int i = 0; i < kFour; ++i) dh[i] *= factor;
    activate_backward<T>(activation, v, dh);
    if (dz) store_four(dz, kDtype<T>, m * H + n, dh);
    if (!h) return;
#pragma unroll
    for (int i = 0; i < kFour; ++i) v[i] *= of_row;
    store_four(h, kDtype<T>, m * H + n, v);
  }
};

struct OutputBackward {
  DeviceRows dy, dx;  // dy where it is to be added

  AIM_DEVICE void operator()(int64_t m, int64_t n, float (&v)[kFour]) const {
    add(v, dy, m, n);
    store_four(dx.row(static_cast<uint32_t>(m)), dx.dtype, n, v);
  }
};

// A product C [M, N] = A B and its epilogue; the lines of A are its rows.
template <class Epilogue>
struct Call {
  Operand a, b;
  int64_t M, N, depth;
  Epilogue epilogue;
};

}  // namespace aim_fast::cuda::tiles
