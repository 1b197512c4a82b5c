// The table of kernels.h for sm_80 and up.
#include "cuda/ampere/instances.h"
#include "cuda/ampere/rows_tile.h"
#include "cuda/kernels.h"

namespace aim_fast::cuda {
namespace ampere {
namespace {

using ptx::BFloat16, ptx::Half;

bool takes_rows(const Rows& rows, int64_t) { return begins_on_vectors(rows); }

int plans(const Problem& p, const Device&, bool) {
  const bool taken = p.dtype != Dtype::kFloat32 && p.D % kChunk == 0 && p.H % kChunk == 0 && p.H <= kMaxHidden;
  return taken ? kRowsPlanCount : 0;
}

// One row of the compiled widths of H.
struct RowsKernel {
  int hidden;
  int (*forward[2])(const RowsCall&, const Grid&, void*);  // by dtype: bf16, fp16
  int (*backward[2])(const RowsCall&, const Grid&, void*);
  size_t (*shared_bytes)(int rows, Dtype input);
};

template <int kHidden>
constexpr RowsKernel kRowsKernel = {kHidden,
                                    {launch_forward<BFloat16, kHidden>, launch_forward<Half, kHidden>},
                                    {launch_backward_rows<BFloat16, kHidden>, launch_backward_rows<Half, kHidden>},
                                    rows_shared_bytes<kHidden>};
constexpr RowsKernel kRowsKernels[] = {kRowsKernel<64>, kRowsKernel<128>, kRowsKernel<192>, kRowsKernel<256>};

int launch_rows(const RowsCall& call, const Problem& p, const Device& device, bool backward) {
  const RowsKernel* kernel = kRowsKernels;
  while (kernel->hidden < p.H) ++kernel;
  const RowsPlan plan = choose_rows_plan(p, device, bool(call.output));
  // Wide rows of fp32 leave room for a warp less.
  int rows = plan.rows;
  while (kernel->shared_bytes(rows, call.input.dtype) > kMaxShared) rows -= kWarpRows;
  // A part without a column would form the hidden block for nothing.
  const int groups = (call.D + kGroup - 1) / kGroup, parts = call.output ? std::min(plan.parts, groups) : 1;
  const Grid grid{dim3(static_cast<unsigned>((p.M + rows - 1) / rows), parts), dim3(rows / kWarpRows * kLanes), 1,
                  kernel->shared_bytes(rows, call.input.dtype)};
  const auto& launchers = backward ? kernel->backward : kernel->forward;
  return launchers[p.dtype == Dtype::kFloat16](call, grid, device.stream);
}

int forward(const ForwardParams& p, const Intermediates&, const Device& device) {
  RowsCall call = rows_call(p, p.x, p.y);
  call.first = {p.w1.data, call.H, call.D};
  call.second = {p.w2.data, call.D, call.H};
  call.b1 = p.b1;
  call.b2 = p.b2;
  call.residual = device_rows(p.residual);
  call.z = p.z.data;
  call.rounded = p.x_kept.data;
  return launch_rows(call, p, device, false);
}

int backward_rows(const BackwardParams& p, const Intermediates& between, const Device& device) {
  RowsCall call = rows_call(p, p.dy, p.dx);
  call.first = {p.w2.data, call.D, call.H};
  call.second = {p.w1.data, call.H, call.D};
  call.z = p.z.data;
  call.dz = between.dz;
  call.h = between.h;
  call.rounded = between.dy;
  return launch_rows(call, p, device, true);
}

struct ColumnsKernel {
  int tile_h;
  int (*launch[2])(const ColumnsCall&, int, void*);  // by dtype: bf16, fp16
};

template <int kTileH>
constexpr ColumnsKernel kColumnsKernel = {kTileH, {launch_columns<BFloat16, kTileH>, launch_columns<Half, kTileH>}};
constexpr ColumnsKernel kColumnsKernels[] = {kColumnsKernel<64>, kColumnsKernel<128>, kColumnsKernel<192>};

int backward_columns(const BackwardParams& p, const Wanted& wanted, const Intermediates& between,
                     const Device& device) {
  ColumnsCall call = {};
  call.M = static_cast<uint32_t>(p.M);
  call.D = static_cast<int>(p.D);
  call.H = static_cast<int>(p.H);
  call.range = rows_of_range(p.M, between.splits);
  call.tiles_h = count_tiles(p.H, tile_h(p.H));
  call.parts[0] = {
      between.dz, device_rows(p.x), wanted.dw1, wanted.db1, false, part_ctas(p, wanted.dw1, wanted.db1, false)};
  call.parts[1] = {
      between.h, device_rows(p.dy), wanted.dw2, wanted.db2, true, part_ctas(p, wanted.dw2, wanted.db2, true)};
  call.row_scale = device_rows(p.row_scale);
  call.dw = between.dw;
  call.sums = between.sums;
  const ColumnsKernel* kernel = kColumnsKernels;
  while (kernel->tile_h < tile_h(p.H)) ++kernel;
  return kernel->launch[p.dtype == Dtype::kFloat16](call, between.splits, device.stream);
}

}  // namespace
}  // namespace ampere

const Kernels ampere_kernels = {ampere::takes_rows,      ampere::plans,         false,
                                ampere::forward,         ampere::backward_rows, ampere::splits,
                                ampere::backward_columns};

}  // namespace aim_fast::cuda
