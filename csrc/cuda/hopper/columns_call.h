// What the host and the kernel of K2 on sm_90a share: how [H, D] is divided among CTAs, and what a launch is given.
#pragma once

#include <cstdint>

#include "cuda/rows.h"

namespace aim_fast::cuda::hopper {

struct ColumnsPlan {
  int H;
  int tile_h;   // rows of a CTA's tile; the H / tile_h CTAs of a cluster have the same columns and share their operand
  int tile_d;   // columns of it; those beyond D are zeros and are not stored
  int along_h;  // of the two consumers lie side by side along H, the others along D
  int stages;   // of 64 rows
};

// Each consumer's accumulators take at most 192 registers a thread, and a CTA's stages at most 227 KiB. Where both
// orders of the consumers fit, the one with the wider instructions reads less shared memory.
constexpr ColumnsPlan kColumnsPlans[] = {
    {64, 64, 256, 1, 5}, {128, 128, 256, 2, 4}, {192, 192, 256, 1, 4}, {256, 128, 256, 2, 4}, {320, 320, 128, 1, 4},
};

constexpr const ColumnsPlan* find_columns_plan(int64_t H) {
  for (const ColumnsPlan& plan : kColumnsPlans) {
    if (plan.H == H) return &plan;
  }
  return nullptr;
}

// What a step multiplies: a box of TMA is as high, and 64 columns wide.
constexpr int kStepRows = 64;

constexpr int64_t steps_of(int64_t M) { return (M + kStepRows - 1) / kStepRows; }
constexpr int64_t tiles_of(int64_t D, int tile_d) { return (D + tile_d - 1) / tile_d; }

// Of a kernel for both products; those of one that is not wanted are not read.
struct ColumnsCall {
  ptx::TensorMap hidden[2], wide[2];  // A and B, by product
  DeviceRows row_scale;
  float* dw;
  float* sums;
  int64_t D;
  uint32_t M;
  int splits;
  int first, products;        // which of the products
  bool sum_hidden, sum_wide;  // dz's columns with the first product, dy's with the second
};

// Instantiated under instances/ for both types and every H of the plans. Returns a cudaError_t.
template <class T, int H>
int launch_columns(const ColumnsCall& call, void* stream);

}  // namespace aim_fast::cuda::hopper
