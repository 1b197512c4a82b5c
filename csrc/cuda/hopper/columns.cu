// K2 on sm_90a: the launch.
#include <algorithm>
#include <iterator>
#include <utility>

#include "cuda/column_sums.h"
#include "cuda/hopper/columns.h"
#include "cuda/hopper/columns_call.h"
#include "cuda/tensor_map.h"

namespace aim_fast::cuda::hopper {
namespace {

// Rows that a range has at least. A range costs a CTA its tile of fp32, written and read again: for the widest tile
// 393 KB, as much as the operands of 7 steps; with 4 steps and more the time lost to that stays below what the further
// range saves (arithmetic).
constexpr int64_t kLeastRows = 4 * kStepRows;

using Launch = int (*)(const ColumnsCall& call, void* stream);

template <class T, size_t... I>
Launch find_launch(int64_t H, std::index_sequence<I...>) {
  Launch found = nullptr;
  ((kColumnsPlans[I].H == H ? void(found = launch_columns<T, kColumnsPlans[I].H>) : void()), ...);
  return found;
}

Launch find_launch(const Problem& p) {
  constexpr auto plans = std::make_index_sequence<std::size(kColumnsPlans)>();
  return p.dtype == Dtype::kBFloat16 ? find_launch<ptx::BFloat16>(p.H, plans) : find_launch<ptx::Half>(p.H, plans);
}

// Rows with one stride, which `takes_rows` has seen to.
int64_t row_bytes(const Rows& rows, int64_t columns) {
  return (rows.ndim ? rows.stride[0] : columns) * element_size(rows.dtype);
}

}  // namespace

// As many ranges as make one wave of CTAs with the tiles of the products: a second wave would begin when the first
// ends, and fewer would leave multiprocessors idle.
int splits(const BackwardParams& p, const Wanted& wanted, const Device& device) {
  const int products = wanted.dw1 + wanted.dw2;
  if (!products) return column_sum_splits(p.M, wanted.db1 * p.H + wanted.db2 * p.D, device.sms);
  const ColumnsPlan& plan = *find_columns_plan(p.H);
  const int cluster = static_cast<int>(p.H) / plan.tile_h;
  const int64_t wave = device.sms / cluster / (products * tiles_of(p.D, plan.tile_d));
  return static_cast<int>(std::max<int64_t>(1, std::min(wave, p.M / kLeastRows)));
}

int backward_columns(const BackwardParams& p, const Wanted& wanted, const Intermediates& between,
                     const Device& device) {
  const int64_t pitch = p.H + p.D, hidden_bytes = p.H * element_size(p.dtype);
  const Launch launch = find_launch(p);
  if (!launch) return 1;  // cudaErrorInvalidValue
  int error = 0;
  if (wanted.dw1 || wanted.dw2) {
    ColumnsCall call = {};
    const char* hidden[] = {between.dz, between.h};
    const Rows* wide[] = {&p.x, &p.dy};
    for (int product = !wanted.dw1; product <= wanted.dw2; ++product) {
      error = make_map(&call.hidden[product], hidden[product], p.dtype, p.M, p.H, hidden_bytes, kStepRows);
      if (!error) {
        error = make_map(&call.wide[product], wide[product]->data, p.dtype, p.M, p.D, row_bytes(*wide[product], p.D),
                         kStepRows);
      }
      if (error) return error;
    }
    call.row_scale = device_rows(p.row_scale);
    call.dw = between.dw;
    call.sums = between.sums;
    call.D = p.D;
    call.M = static_cast<uint32_t>(p.M);
    call.splits = between.splits;
    call.first = !wanted.dw1;
    call.products = wanted.dw1 + wanted.dw2;
    call.sum_hidden = wanted.db1;
    call.sum_wide = wanted.db2;
    error = launch(call, device.stream);
  }
  // Sums whose product is not formed.
  if (!error && wanted.db1 && !wanted.dw1) {
    error = column_sums({between.dz, p.dtype, p.M, p.H, hidden_bytes, {}, between.sums, pitch, between.splits},
                        device.stream);
  }
  if (!error && wanted.db2 && !wanted.dw2) {
    error = column_sums(
        {p.dy.data, p.dtype, p.M, p.D, row_bytes(p.dy, p.D), p.row_scale, between.sums + p.H, pitch, between.splits},
        device.stream);
  }
  return error;
}

}  // namespace aim_fast::cuda::hopper
