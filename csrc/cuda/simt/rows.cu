// The products by rows: the two of the forward, and the two of K1.
//
//     forward   z = x w1^T + b1      h = act(z)                             y = factor * (h w2^T + b2) [+ x] [+
//     residual] K1        dh = factor * dy w2  dz = dh * act'(z)  h = rs * act(z)     dx = dz w1 [+ dy]
//
//     factor = alpha * scale * row_scale, rs = row_scale; a wide scale is in K1's w2
//
//     Shapes    x, y, residual, dy, dx [M, D] by rows of any strides; w1 [H, D]; w2 [D, H]; z, h, dz [M, H]
//     Tiling    product.h; each product picks a tile of its own
//     Rounding  none but fp32's, and dx to x's dtype
#include "cuda/activation.h"
#include "cuda/launch.h"
#include "cuda/simt/product.h"
#include "cuda/simt/rows.h"
#include "cuda/vectors.h"

namespace aim_fast::cuda::simt {
namespace {

AIM_DEVICE float row_factor(const DeviceRows& row_scale, int64_t m) {
  return row_scale ? load_float(row_scale.row(static_cast<uint32_t>(m)), row_scale.dtype, 0) : 1.f;
}

AIM_DEVICE void add(float (&to)[4], const DeviceRows& rows, int64_t m, int64_t n) {
  if (!rows) return;
  float more[4];
  load_four(rows.row(static_cast<uint32_t>(m)), rows.dtype, n, more);
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] += more[i];
}

// ---- what becomes of four neighbouring elements of a product

struct Hidden {
  Array b1;
  Activation activation;
  float *z, *h;  // [M, H]; z may be absent
  int64_t H;

  AIM_DEVICE void operator()(int64_t m, int64_t n, float (&v)[4]) const {
    float bias[4] = {};
    if (b1) load_four(b1.data, b1.dtype, n, bias);
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] += bias[i];
    if (z) *reinterpret_cast<float4*>(z + m * H + n) = {v[0], v[1], v[2], v[3]};
    activate<float>(activation, v);
    *reinterpret_cast<float4*>(h + m * H + n) = {v[0], v[1], v[2], v[3]};
  }
};

struct Output {
  Array b2, scale;
  bool wide_scale;
  float alpha;
  DeviceRows row_scale, x, residual, y;  // x where it is to be added

  AIM_DEVICE void operator()(int64_t m, int64_t n, float (&v)[4]) const {
    float bias[4] = {}, factor[4] = {1.f, 1.f, 1.f, 1.f};
    if (b2) load_four(b2.data, b2.dtype, n, bias);
    if (wide_scale) load_four(scale.data, scale.dtype, n, factor);
    const float common = alpha * (scale && !wide_scale ? load_float(scale.data, scale.dtype, 0) : 1.f);
    const float of_row = common * row_factor(row_scale, m);
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = of_row * factor[i] * (v[i] + bias[i]);
    add(v, x, m, n);
    add(v, residual, m, n);
    store_four(y.row(static_cast<uint32_t>(m)), y.dtype, n, v);
  }
};

struct HiddenBackward {
  Array scale;  // of one element
  float alpha;
  Activation activation;
  DeviceRows row_scale;
  const float* z;
  float *dz, *h;  // [M, H]; each may be absent
  int64_t H;

  AIM_DEVICE void operator()(int64_t m, int64_t n, float (&dh)[4]) const {
    const float of_row = row_factor(row_scale, m);
    const float factor = alpha * (scale ? load_float(scale.data, scale.dtype, 0) : 1.f) * of_row;
    const float4 four = *reinterpret_cast<const float4*>(z + m * H + n);
    float v[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) dh[i] *= factor;
    activate_backward<float>(activation, v, dh);
    if (dz) *reinterpret_cast<float4*>(dz + m * H + n) = {dh[0], dh[1], dh[2], dh[3]};
    if (h) *reinterpret_cast<float4*>(h + m * H + n) = {of_row * v[0], of_row * v[1], of_row * v[2], of_row * v[3]};
  }
};

struct OutputBackward {
  DeviceRows dy, dx;  // dy where it is to be added

  AIM_DEVICE void operator()(int64_t m, int64_t n, float (&v)[4]) const {
    add(v, dy, m, n);
    store_four(dx.row(static_cast<uint32_t>(m)), dx.dtype, n, v);
  }
};

// ---- launches

template <class Epilogue>
struct Call {
  Operand a, b;
  int64_t M, N, depth;
  Epilogue epilogue;
};

template <class T, Lines kLinesB, class Epilogue>
__global__ void __launch_bounds__(kThreads, kCtas) rows_kernel(const AIM_GRID_CONSTANT Call<Epilogue> call) {
  AIM_DYNAMIC_SHARED(shared);
  Product<T, Lines::kAlongDepth, kLinesB>::run(reinterpret_cast<float*>(shared), call.a, call.b,
                                               int64_t{blockIdx.x} * T::kTileM, int64_t{blockIdx.y} * T::kTileN, call.M,
                                               call.N, {0, call.depth}, call.epilogue);
}

// C [M, N] = A B, and the epilogue of it; the lines of A are its rows.
template <Lines kLinesB, class Epilogue>
int multiply(const Operand& a, const Operand& b, int64_t N, int64_t depth, const Epilogue& epilogue,
             const Device& device) {
  const Call<Epilogue> call{a, b, a.count, N, depth, epilogue};
  const auto run = [&]<class T>() {
    using P = Product<T, Lines::kAlongDepth, kLinesB>;
    const Grid grid{dim3(static_cast<unsigned>((call.M + T::kTileM - 1) / T::kTileM),
                         static_cast<unsigned>((N + T::kTileN - 1) / T::kTileN)),
                    dim3(kThreads), 1, P::kShared};
    return launch(rows_kernel<T, kLinesB, Epilogue>, grid, device.stream, call);
  };
  switch (choose_tile(call.M, N, depth, device)) {
    case 0:
      return run.template operator()<LargeTile>();
    case 1:
      return run.template operator()<MiddleTile>();
    default:
      return run.template operator()<SmallTile>();
  }
}

Operand rows_operand(const Rows& rows, int64_t count, int64_t length) { return {device_rows(rows), count, length}; }

}  // namespace

Operand matrix(const char* data, int64_t rows, int64_t columns) {
  return {{const_cast<char*>(data), {columns * 4}, {}, 1, Dtype::kFloat32}, rows, columns};
}

int forward(const ForwardParams& p, const Intermediates& between, const Device& device) {
  float* h = reinterpret_cast<float*>(between.h);
  const Hidden hidden{p.b1, p.activation, reinterpret_cast<float*>(p.z.data), h, p.H};
  const int error =
      multiply<Lines::kAlongDepth>(rows_operand(p.x, p.M, p.D), matrix(p.w1.data, p.H, p.D), p.H, p.D, hidden, device);
  if (error || !p.y) return error;  // z alone, for a backward that has not kept it
  const Output output{p.b2,
                      p.scale,
                      p.scale && p.scale_size > 1,
                      p.alpha,
                      device_rows(p.row_scale),
                      p.skip ? device_rows(p.x) : DeviceRows{},
                      device_rows(p.residual),
                      device_rows(p.y)};
  return multiply<Lines::kAlongDepth>(matrix(between.h, p.M, p.H), matrix(p.w2.data, p.D, p.H), p.D, p.H, output,
                                      device);
}

int backward_rows(const BackwardParams& p, const Intermediates& between, const Device& device) {
  const HiddenBackward hidden{p.scale,
                              p.alpha,
                              p.activation,
                              device_rows(p.row_scale),
                              reinterpret_cast<const float*>(p.z.data),
                              reinterpret_cast<float*>(between.dz),
                              reinterpret_cast<float*>(between.h),
                              p.H};
  // Where h alone is wanted there is nothing to multiply.
  const int64_t depth = between.dz ? p.D : 0;
  const int error = multiply<Lines::kAcrossDepth>(rows_operand(p.dy, p.M, p.D), matrix(p.w2.data, p.D, p.H), p.H, depth,
                                                  hidden, device);
  if (error || !p.dx) return error;
  const OutputBackward output{p.skip ? device_rows(p.dy) : DeviceRows{}, device_rows(p.dx)};
  return multiply<Lines::kAcrossDepth>(matrix(between.dz, p.M, p.H), matrix(p.w1.data, p.H, p.D), p.D, p.H, output,
                                       device);
}

}  // namespace aim_fast::cuda::simt
