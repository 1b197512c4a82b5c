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
  return row_scale ? load_float(row_of(row_scale, m), row_scale.dtype, 0) : 1.f;
}

// Four elements as they are in memory, zeros where there is no tensor: of any dtype, or of 16 bits, which take half the
// registers. Several may be on their way before the first is converted.
template <bool kWide>
struct Four {
  std::conditional_t<kWide, uint4, uint2> bits;

  AIM_DEVICE static Four of(const char* row, Dtype dtype, int64_t n) {
    if constexpr (kWide)
      return {load_four(row, dtype, n)};
    else
      return {*reinterpret_cast<const uint2*>(row + 2 * n)};
  }
  AIM_DEVICE static Four of(const Array& vector, int64_t n) {
    return vector ? of(vector.data, vector.dtype, n) : Four{};
  }
  AIM_DEVICE static Four of(const DeviceRows& rows, int64_t m, int64_t n) {
    return rows ? of(row_of(rows, m), rows.dtype, n) : Four{};
  }
  AIM_DEVICE void convert(Dtype dtype, float (&v)[kFour]) const {
    if constexpr (kWide)
      convert_four(bits, dtype, v);
    else
      convert_four({bits.x, bits.y, 0, 0}, dtype == Dtype::kBFloat16 ? dtype : Dtype::kFloat16, v);
  }
  AIM_DEVICE void add_to(float (&v)[kFour], Dtype dtype) const {
    float more[kFour];
    convert(dtype, more);
#pragma unroll
    for (int i = 0; i < kFour; ++i) v[i] += more[i];
  }
};

template <class T>
struct Hidden {
  Array b1;
  Activation activation;
  char *z, *h;  // [M, H]; z may be absent
  int64_t H;

  struct Columns {
    Four<true> bias;
  };
  AIM_DEVICE Columns columns(int64_t n) const { return {Four<true>::of(b1, n)}; }
  AIM_DEVICE Nothing elements(int64_t, int64_t) const { return {}; }

  AIM_DEVICE void operator()(int64_t m, int64_t n, float (&v)[kFour], const Columns& columns, Nothing) const {
    columns.bias.add_to(v, b1.dtype);
    if (z) store_four(z, kDtype<T>, m * H + n, v);
    activate<T>(activation, v);
    store_four(h, kDtype<T>, m * H + n, v);
  }
};

// kWide: x or the residual may be fp32.
template <bool kWide>
struct Output {
  Array b2, scale;
  bool wide_scale;
  float alpha;
  DeviceRows row_scale, x, residual, y;  // x where it is to be added

  struct Columns {
    Four<true> bias, factor;
    float common;
  };
  struct Elements {
    Four<kWide> x, residual;
    float factor;
  };
  AIM_DEVICE Columns columns(int64_t n) const {
    const bool one = scale && !wide_scale;
    return {Four<true>::of(b2, n), wide_scale ? Four<true>::of(scale, n) : Four<true>{},
            one ? alpha * load_float(scale.data, scale.dtype, 0) : alpha};
  }
  AIM_DEVICE Elements elements(int64_t m, int64_t n) const {
    return {Four<kWide>::of(x, m, n), Four<kWide>::of(residual, m, n), row_factor(row_scale, m)};
  }

  AIM_DEVICE void operator()(int64_t m, int64_t n, float (&v)[kFour], const Columns& columns,
                             const Elements& elements) const {
    float factor[kFour] = {1.f, 1.f, 1.f, 1.f};
    if (wide_scale) columns.factor.convert(scale.dtype, factor);
    columns.bias.add_to(v, b2.dtype);
    const float of_row = columns.common * elements.factor;
#pragma unroll
    for (int i = 0; i < kFour; ++i) v[i] *= of_row * factor[i];
    elements.x.add_to(v, x.dtype);
    elements.residual.add_to(v, residual.dtype);
    store_four(row_of(y, m), y.dtype, n, v);
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

  struct Columns {
    float common;
  };
  static constexpr bool kWide = std::is_same_v<T, float>;
  struct Elements {
    Four<kWide> z;
    float of_row;
  };
  AIM_DEVICE Columns columns(int64_t) const { return {scale ? alpha * load_float(scale.data, scale.dtype, 0) : alpha}; }
  AIM_DEVICE Elements elements(int64_t m, int64_t n) const {
    return {Four<kWide>::of(z, kDtype<T>, m * H + n), row_factor(row_scale, m)};
  }

  AIM_DEVICE void operator()(int64_t m, int64_t n, float (&dh)[kFour], const Columns& columns,
                             const Elements& elements) const {
    float v[kFour];
    elements.z.convert(kDtype<T>, v);
#pragma unroll
    for (int i = 0; i < kFour; ++i) dh[i] *= columns.common * elements.of_row;
    activate_backward<T>(activation, v, dh);
    if (dz) store_four(dz, kDtype<T>, m * H + n, dh);
    if (!h) return;
#pragma unroll
    for (int i = 0; i < kFour; ++i) v[i] *= elements.of_row;
    store_four(h, kDtype<T>, m * H + n, v);
  }
};

// kWide: dy may be fp32.
template <bool kWide>
struct OutputBackward {
  DeviceRows dy, dx;  // dy where it is to be added

  struct Elements {
    Four<kWide> dy;
  };
  AIM_DEVICE Nothing columns(int64_t) const { return {}; }
  AIM_DEVICE Elements elements(int64_t m, int64_t n) const { return {Four<kWide>::of(dy, m, n)}; }

  AIM_DEVICE void operator()(int64_t m, int64_t n, float (&v)[kFour], Nothing, const Elements& elements) const {
    elements.dy.add_to(v, dy.dtype);
    store_four(row_of(dx, m), dx.dtype, n, v);
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
