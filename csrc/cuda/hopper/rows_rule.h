// Which plan the row kernels run by: pure functions of the call's sizes and the GPU's.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/hopper/rows_call.h"

namespace aim_fast::cuda::hopper {

struct RowsSize {
  int64_t M, D, H;
  bool second;  // y or dx is wanted
  int sms;
};

// 0  two consumers, cluster of two    256 rows share a reading of the weights
// 1  two consumers                    128 rows
// 2  one consumer, columns in parts   64 rows, for calls that would leave multiprocessors idle
constexpr int kRowsPlans = 3;

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Clusters' worth of items, and how many of them run at once.
constexpr int64_t items_of(const RowsSize& size, const RowsGrid& grid) {
  return divide_up(size.M, int64_t{kGroupRows} * grid.consumers * grid.cluster) * grid.parts;
}
constexpr int64_t clusters_of(const RowsSize& size, const RowsGrid& grid) {
  return std::min(items_of(size, grid), std::max<int64_t>(1, size.sms / grid.cluster));
}

// Bytes that the busiest multiprocessor moves from and to L2. Both the call that leaves multiprocessors idle and the
// one whose last round is nearly empty show in the number of rounds, and the traffic of the weights in the bytes of an
// item: x read, read again for the skip and y written as often as rows, the weights once for a CTA, or for a cluster.
constexpr int64_t rows_cost(const RowsSize& size, const RowsGrid& grid) {
  const int64_t rounds = divide_up(items_of(size, grid), clusters_of(size, grid));
  const int64_t rows = int64_t{kGroupRows} * grid.consumers, row = 2 * size.D, weights = 2 * size.D * size.H;
  const int64_t first = rows * row + weights / grid.cluster;
  const int64_t second = size.second ? (2 * rows * row + weights / grid.cluster) / grid.parts : 0;
  return rounds * (first + second);
}

constexpr RowsGrid rows_grid(const RowsSize& size, int plan) {
  if (plan < 2) return {2, 2 - plan, 1};
  RowsGrid best{1, 1, 1};
  const int parts = size.second ? static_cast<int>(size.D / kColumns) : 1;
  for (RowsGrid grid = best; grid.parts <= parts; ++grid.parts) {
    if (rows_cost(size, grid) < rows_cost(size, best)) best = grid;
  }
  return best;
}

// The cheapest; of equals the first, which shares the weights most.
constexpr int choose_rows_plan(const RowsSize& size) {
  int best = 0;
  for (int plan = 1; plan < kRowsPlans; ++plan) {
    if (rows_cost(size, rows_grid(size, plan)) < rows_cost(size, rows_grid(size, best))) best = plan;
  }
  return best;
}

}  // namespace aim_fast::cuda::hopper
