// The products by rows: the two of the forward, and the two of K1. Each picks a tile of its own.
#include "cuda/launch.h"
#include "cuda/simt/epilogues.h"
#include "cuda/simt/rows.h"

namespace aim_fast::cuda::simt {
namespace {

template <class T, Lines kLinesB, class Epilogue>
__global__ void __launch_bounds__(kThreads, kCtas) rows_kernel(const AIM_GRID_CONSTANT Call<Epilogue> call) {
  AIM_DYNAMIC_SHARED(shared);
  Product<T, Lines::kAlongDepth, kLinesB>::run(reinterpret_cast<float*>(shared), call.a, call.b,
                                               int64_t{blockIdx.x} * T::kTileM, int64_t{blockIdx.y} * T::kTileN, call.M,
                                               call.N, {0, call.depth}, call.epilogue);
}

unsigned blocks_of(int64_t size, int tile) { return static_cast<unsigned>((size + tile - 1) / tile); }

template <Lines kLinesB, class Epilogue>
int multiply(const Call<Epilogue>& call, const Device& device) {
  const auto run = [&]<class T>() {
    const Grid grid{dim3(blocks_of(call.M, T::kTileM), blocks_of(call.N, T::kTileN)), dim3(kThreads), 1,
                    Product<T, Lines::kAlongDepth, kLinesB>::kShared};
    return launch(rows_kernel<T, kLinesB, Epilogue>, grid, device.stream, call);
  };
  switch (choose_tile(call.M, call.N, call.depth, device)) {
    case 0:
      return run.template operator()<LargeTile>();
    case 1:
      return run.template operator()<MiddleTile>();
    default:
      return run.template operator()<SmallTile>();
  }
}

// Both products, of which the second reads what the first one's epilogue writes; the second one may be left out.
template <Lines kLinesB, class First, class Second>
int multiply_both(const Call<First>& first, const Call<Second>& second, bool wants_second, const Device& device) {
  const int error = multiply<kLinesB>(first, device);
  return error || !wants_second ? error : multiply<kLinesB>(second, device);
}

}  // namespace

Operand matrix(const char* data, int64_t rows, int64_t columns) {
  return {{const_cast<char*>(data), {columns * 4}, {}, 1, Dtype::kFloat32}, rows, columns};
}

int forward(const ForwardParams& p, const Intermediates& between, const Device& device) {
  const Call<Hidden> hidden{
      {device_rows(p.x), p.M, p.D},
      matrix(p.w1.data, p.H, p.D),
      p.M,
      p.H,
      p.D,
      {p.b1, p.activation, reinterpret_cast<float*>(p.z.data), reinterpret_cast<float*>(between.h), p.H}};
  const Call<Output> output{matrix(between.h, p.M, p.H),
                            matrix(p.w2.data, p.D, p.H),
                            p.M,
                            p.D,
                            p.H,
                            {p.b2, p.scale, p.scale && p.scale_size > 1, p.alpha, device_rows(p.row_scale),
                             p.skip ? device_rows(p.x) : DeviceRows{}, device_rows(p.residual), device_rows(p.y)}};
  // Without y it is z alone that a backward wants, which has not kept it.
  return multiply_both<Lines::kAlongDepth>(hidden, output, bool(p.y), device);
}

int backward_rows(const BackwardParams& p, const Intermediates& between, const Device& device) {
  const Call<HiddenBackward> hidden{
      {device_rows(p.dy), p.M, p.D},
      matrix(p.w2.data, p.D, p.H),
      p.M,
      p.H,
      between.dz ? p.D : 0,  // where h alone is wanted there is nothing to multiply
      {p.scale, p.alpha, p.activation, device_rows(p.row_scale), reinterpret_cast<const float*>(p.z.data),
       reinterpret_cast<float*>(between.dz), reinterpret_cast<float*>(between.h), p.H}};
  const Call<OutputBackward> output{matrix(between.dz, p.M, p.H),
                                    matrix(p.w1.data, p.H, p.D),
                                    p.M,
                                    p.D,
                                    p.H,
                                    {p.skip ? device_rows(p.dy) : DeviceRows{}, device_rows(p.dx)}};
  return multiply_both<Lines::kAcrossDepth>(hidden, output, bool(p.dx), device);
}

}  // namespace aim_fast::cuda::simt
