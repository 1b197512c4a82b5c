// The products by rows: the two of the forward, and the two of K1. Each picks a tile of its own.
#include "cuda/launch.h"
#include "cuda/tiles/epilogues.h"
#include "cuda/tiles/rows.h"

namespace aim_fast::cuda::tiles {
namespace {

// As kCtas; the epilogue that adds fp32 rows to y needs more registers.
template <class T, class Epilogue>
constexpr int kCtasWith = std::is_same_v<Epilogue, Output<true>> ? 2 : kCtas<T>;

template <class T, class Tiling, Lines kLinesB, bool kFollows, class Epilogue>
__global__ void __launch_bounds__(kThreads, kCtasWith<T, Epilogue>)
    rows_kernel(const AIM_GRID_CONSTANT Call<Epilogue> call) {
  AIM_DYNAMIC_SHARED(memory);
  if constexpr (!kFollows) ptx::allow_next_launch();
  Product<T, Tiling, Lines::kAlongDepth, kLinesB, kFollows>::run(
      memory, call.a, call.b, int64_t{blockIdx.x} * Tiling::kTileM, int64_t{blockIdx.y} * Tiling::kTileN, call.M,
      call.N, {0, call.depth}, call.epilogue);
}

unsigned blocks_of(int64_t size, int tile) { return static_cast<unsigned>((size + tile - 1) / tile); }

template <class T, Lines kLinesB, bool kFollows, class Epilogue>
int multiply(const Call<Epilogue>& call, const Device& device) {
  const auto run = [&]<class Tiling>() {
    const Grid grid{dim3(blocks_of(call.M, Tiling::kTileM), blocks_of(call.N, Tiling::kTileN)), dim3(kThreads), 1,
                    Product<T, Tiling, Lines::kAlongDepth, kLinesB>::kShared, kFollows && device.early};
    return launch(rows_kernel<T, Tiling, kLinesB, kFollows, Epilogue>, grid, device.stream, call);
  };
  switch (choose_tile<T>(call.M, call.N, call.depth, device)) {
    case 0:
      return run.template operator()<typename Tilings<T>::Large>();
    case 1:
      return run.template operator()<typename Tilings<T>::Middle>();
    default:
      return run.template operator()<typename Tilings<T>::Small>();
  }
}

// Both products, of which the second reads what the first one's epilogue writes; the second one may be left out.
template <class T, Lines kLinesB, class First, class Second>
int multiply_both(const Call<First>& first, const Call<Second>& second, bool wants_second, const Device& device) {
  const int error = multiply<T, kLinesB, false>(first, device);
  return error || !wants_second ? error : multiply<T, kLinesB, true>(second, device);
}

// Rows [M, D] as they are multiplied: in the compute dtype.
Operand multiplied(const Rows& rows, const char* converted, const Problem& p) {
  return converted ? matrix(converted, p.dtype, p.M, p.D) : Operand{device_rows(rows), p.M, p.D};
}

}  // namespace

Operand matrix(const char* data, Dtype dtype, int64_t rows, int64_t columns) {
  return {{const_cast<char*>(data), {columns * element_size(dtype)}, {}, 1, dtype}, rows, columns};
}

int forward(const ForwardParams& p, const Intermediates& between, const Device& device) {
  const bool wide = (p.skip && p.x.dtype == Dtype::kFloat32) || (p.residual && p.residual.dtype == Dtype::kFloat32);
  return with_type(p.dtype, wide, [&]<class T, bool kWide>() {
    const Call<Hidden<T>> hidden{multiplied(p.x, between.x, p),
                                 matrix(p.w1.data, p.dtype, p.H, p.D),
                                 p.M,
                                 p.H,
                                 p.D,
                                 {p.b1, p.activation, p.z.data, between.h, p.H}};
    const Call<Output<kWide>> output{
        matrix(between.h, p.dtype, p.M, p.H),
        matrix(p.w2.data, p.dtype, p.D, p.H),
        p.M,
        p.D,
        p.H,
        {p.b2, p.scale, p.scale && p.scale_size > 1, p.alpha, device_rows(p.row_scale),
         p.skip ? device_rows(p.x) : DeviceRows{}, device_rows(p.residual), device_rows(p.y)}};
    // Without y it is z alone that a backward wants, which has not kept it.
    return multiply_both<T, Lines::kAlongDepth>(hidden, output, bool(p.y), device);
  });
}

int backward_rows(const BackwardParams& p, const Intermediates& between, const Device& device) {
  const bool wide = p.skip && p.dy.dtype == Dtype::kFloat32;
  return with_type(p.dtype, wide, [&]<class T, bool kWide>() {
    const Call<HiddenBackward<T>> hidden{
        multiplied(p.dy, between.dy, p),
        matrix(p.w2.data, p.dtype, p.D, p.H),
        p.M,
        p.H,
        between.dz ? p.D : 0,  // where h alone is wanted there is nothing to multiply
        {p.scale, p.alpha, p.activation, device_rows(p.row_scale), p.z.data, between.dz, between.h, p.H}};
    const Call<OutputBackward<kWide>> output{matrix(between.dz, p.dtype, p.M, p.H),
                                             matrix(p.w1.data, p.dtype, p.H, p.D),
                                             p.M,
                                             p.D,
                                             p.H,
                                             {p.skip ? device_rows(p.dy) : DeviceRows{}, device_rows(p.dx)}};
    return multiply_both<T, Lines::kAcrossDepth>(hidden, output, bool(p.dx), device);
  });
}

}  // namespace aim_fast::cuda::tiles
