// The family of sm_90a: the row kernels' launches, and the table.
#include <algorithm>
#include <iterator>

#include "cuda/hopper/columns.h"
#include "cuda/hopper/rows_plan.h"
#include "cuda/hopper/rows_rule.h"
#include "cuda/kernels.h"
#include "cuda/tensor_map.h"

namespace aim_fast::cuda {
namespace hopper {
namespace {

constexpr int64_t kWidths[] = {64, 128, 192, 256, 320};
constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue

using Launch = int (*)(RowsCall call, bool float_input, int ctas, void* stream);

template <class T>
Launch find_launch(int64_t H, bool backward) {
  switch (H) {
    case 64:
      return backward ? launch_rows_backward<T, 64> : launch_rows_forward<T, 64>;
    case 128:
      return backward ? launch_rows_backward<T, 128> : launch_rows_forward<T, 128>;
    case 192:
      return backward ? launch_rows_backward<T, 192> : launch_rows_forward<T, 192>;
    case 256:
      return backward ? launch_rows_backward<T, 256> : launch_rows_forward<T, 256>;
    case 320:
      return backward ? launch_rows_backward<T, 320> : launch_rows_forward<T, 320>;
  }
  return nullptr;
}

int plans(const Problem& p, const Device&, bool) {
  const bool width = std::find(std::begin(kWidths), std::end(kWidths), p.H) != std::end(kWidths);
  if (!width || p.D <= 0 || p.D % kColumns || p.dtype == Dtype::kFloat32) return 0;
  return p.H == kThreeConsumersH ? kRowsPlans : kRowsPlans - 1;
}

// One stride from row to row: what a tensor map can say.
bool has_map(const Rows& rows, int64_t columns) {
  const auto address = reinterpret_cast<uintptr_t>(rows.data);
  if (address % 16 || rows.ndim > 1) return false;
  return rows.ndim == 0 || (rows.stride[0] >= columns && rows.stride[0] * element_size(rows.dtype) % 16 == 0);
}

int map_rows(ptx::TensorMap* map, const Rows& rows, int64_t M, int64_t columns, int box_rows) {
  const int64_t stride = rows.ndim ? rows.stride[0] : columns;
  return make_map(map, rows.data, rows.dtype, M, columns, stride * element_size(rows.dtype), box_rows);
}

// One of [M, columns] in the compute dtype; what is absent has no map.
int map_matrix(ptx::TensorMap* map, const char* data, const Problem& p, int64_t rows, int64_t columns, int box_rows) {
  return data ? make_map(map, data, p.dtype, rows, columns, columns * element_size(p.dtype), box_rows) : 0;
}

// What both directions have; input is x or dy, out is y or dx.
int fill_call(RowsCall& call, const Problem& p, const Rows& input, const Rows& out) {
  call.scale = p.scale;
  call.wide_scale = p.scale && p.scale_size > 1;
  call.row_scale = device_rows(p.row_scale);
  call.out_rows = device_rows(out);
  call.skip = p.skip;
  call.alpha = p.alpha;
  call.activation = p.activation;
  call.second = bool(out);
  call.out_by_map = out && out.dtype == p.dtype && has_map(out, p.D);
  call.M = static_cast<uint32_t>(p.M);
  call.steps = static_cast<int>(p.D / kColumns);
  int error = map_rows(&call.input, input, p.M, p.D, kGroupRows);
  if (!error) error = map_matrix(&call.w1, p.w1.data, p, p.H, p.D, static_cast<int>(p.H / 2));
  if (!error) error = map_matrix(&call.w2, p.w2.data, p, p.D, p.H, kColumns / 2);
  if (!error && call.out_by_map) error = map_rows(&call.out, out, p.M, p.D, kWarpRows);
  return error;
}

int run(RowsCall& call, const Problem& p, const Rows& input, const Device& device, bool backward) {
  const bool float_input = input.dtype == Dtype::kFloat32;
  const bool plain = p.dtype == Dtype::kBFloat16 ? is_plain<ptx::BFloat16>(call) : is_plain<ptx::Half>(call);
  const bool three = p.H == kThreeConsumersH && !float_input && (plain || !call.second);
  const RowsSize size{p.M, p.D, p.H, call.second, device.sms, three};
  const Launch launch =
      p.dtype == Dtype::kBFloat16 ? find_launch<ptx::BFloat16>(p.H, backward) : find_launch<ptx::Half>(p.H, backward);
  if (!launch || device.plan >= kRowsPlans) return kInvalidValue;
  call.grid = rows_grid(size, device.plan < 0 ? choose_rows_plan(size) : device.plan);
  call.items = static_cast<int>(items_of(size, call.grid));
  const int64_t ctas = clusters_of(size, call.grid) * call.grid.cluster;
  return launch(call, float_input, static_cast<int>(ctas), device.stream);
}

int forward(const ForwardParams& p, const Intermediates&, const Device& device) {
  RowsCall call = {};
  call.b1 = p.b1;
  call.b2 = p.b2;
  call.residual = device_rows(p.residual);
  call.keep_z = bool(p.z);
  call.keep_rounded = bool(p.x_kept);
  int error = fill_call(call, p, p.x, p.y);
  if (!error) error = map_matrix(&call.z, p.z.data, p, p.M, p.H, kWarpRows);
  if (!error) error = map_matrix(&call.rounded, p.x_kept.data, p, p.M, p.D, kWarpRows);
  return error ? error : run(call, p, p.x, device, false);
}

int backward_rows(const BackwardParams& p, const Intermediates& between, const Device& device) {
  RowsCall call = {};
  call.keep_dz = between.dz;
  call.keep_h = between.h;
  call.keep_rounded = between.dy && p.dy.dtype == Dtype::kFloat32;
  int error = fill_call(call, p, p.dy, p.dx);
  if (!error) error = map_matrix(&call.z, p.z.data, p, p.M, p.H, kGroupRows);
  if (!error) error = map_matrix(&call.dz, between.dz, p, p.M, p.H, kWarpRows);
  if (!error) error = map_matrix(&call.h, between.h, p, p.M, p.H, kWarpRows);
  if (!error) error = map_matrix(&call.rounded, between.dy, p, p.M, p.D, kWarpRows);
  return error ? error : run(call, p, p.dy, device, true);
}

}  // namespace
}  // namespace hopper

const Kernels hopper_kernels = {hopper::has_map, hopper::plans,           false, hopper::forward, hopper::backward_rows,
                                hopper::splits,  hopper::backward_columns};

}  // namespace aim_fast::cuda
