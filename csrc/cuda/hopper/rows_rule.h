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
  bool three;  // consumers can run it
};

// 0  two consumers, cluster of two    256 rows share a reading of the weights
// 1  two consumers                    128 rows
// 2  one consumer                     64 rows, for calls that would leave multiprocessors idle
// 3  three consumers                  192 rows, at H = 192; plan 1 where they cannot run the call
//
// What does not fill the last round is cut into parts of the columns.
constexpr int kRowsPlans = 4;

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of rows, items, and clusters that run at once, each with a block or a part of one.
constexpr int64_t blocks_of(const RowsSize& size, const RowsGrid& grid) {
  return divide_up(size.M, int64_t{kGroupRows} * grid.consumers * grid.cluster);
}
constexpr int64_t items_of(const RowsSize& size, const RowsGrid& grid) {
  return grid.whole + (blocks_of(size, grid) - grid.whole) * grid.parts;
}
constexpr int64_t room_of(const RowsSize& size, const RowsGrid& grid) {
  return std::max<int64_t>(1, size.sms / grid.cluster);
}
constexpr int64_t clusters_of(const RowsSize& size, const RowsGrid& grid) {
  return std::min(items_of(size, grid), room_of(size, grid));
}

// What the busiest multiprocessor takes for its blocks, in bytes that arrive in it, of which an H100 takes 51 KB in a
// microsecond. A block reads x and the first weight; what the activation takes is as long as 10 B for each value of the
// hidden block; then come x again for the skip, y on its way out, and the second weight. A cluster halves what leaves
// L2, not what arrives. Three consumers take a fifth longer than that: on an H200 37 us for a block, where two take 23
// to 25. Beside forwards measured on an H100, M = 197, 1576, 12608, 18912 and 50432 at D = 768, H = 192: 11 us (12), 12
// (14), 28 (27), 44 (44) and 84 (86).
constexpr int64_t rows_cost(const RowsSize& size, const RowsGrid& grid) {
  const int64_t room = room_of(size, grid), rounds = grid.whole / room;
  const int64_t last = divide_up(items_of(size, grid) - grid.whole, room);
  const int64_t rows = int64_t{kGroupRows} * grid.consumers, weights = 2 * size.D * size.H;
  const int64_t first = rows * (2 * size.D + 10 * size.H) + weights;
  const int64_t second = size.second ? rows * 4 * size.D + weights : 0;
  const int64_t cost = rounds * (first + second) + last * (first + second / grid.parts);
  return grid.consumers == 3 ? cost * 6 / 5 : cost;
}

constexpr RowsGrid rows_grid(const RowsSize& size, int plan) {
  if (plan == 3 && !size.three) plan = 1;
  constexpr int kOf[kRowsPlans][2] = {{2, 2}, {2, 1}, {1, 1}, {3, 1}};  // consumers, cluster
  RowsGrid best = {kOf[plan][0], kOf[plan][1], 0, 1};
  const int64_t room = room_of(size, best);
  best.whole = static_cast<int>(blocks_of(size, best) / room * room);
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
