// The products by rows, the tiles that they choose from, and the operands that they and K2 read.
#pragma once

#include "cuda/kernels.h"
#include "cuda/simt/product.h"

namespace aim_fast::cuda::simt {

using LargeTile = Tiling<64, 64, 8, 4, 32, 3>;
using MiddleTile = Tiling<32, 32, 4, 4, 32, 3>;
using SmallTile = Tiling<16, 16, 4, 2, 64, 5>;
constexpr int kTiles = 3;  // the plans: one of them for both products

// The forced plan's tile, 0 to 2 from the largest, or the one that a product [M, N] takes the fewest cycles with:
// rounds of CTAs, each with a start and with its multiply-adds at a share of the 128 a cycle. A guess of proportions.
inline int choose_tile(int64_t M, int64_t N, int64_t depth, const Device& device) {
  if (device.plan >= 0 && device.plan < kTiles) return device.plan;
  constexpr int kEdges[kTiles] = {64, 32, 16};
  constexpr double kShare[kTiles] = {0.6, 0.4, 0.25}, kStart = 1500;
  int best = 0;
  double least = 0;
  for (int tile = 0; tile < kTiles; ++tile) {
    const int64_t edge = kEdges[tile], ctas = ((M + edge - 1) / edge) * ((N + edge - 1) / edge);
    const double work = static_cast<double>(edge * edge * depth) / (128 * kShare[tile]);
    const double cycles = static_cast<double>((ctas + device.sms - 1) / device.sms) * (kStart + work);
    if (tile > 0 && cycles >= least) continue;
    least = cycles;
    best = tile;
  }
  return best;
}

// A contiguous matrix of fp32.
Operand matrix(const char* data, int64_t rows, int64_t columns);

int forward(const ForwardParams& p, const Intermediates& between, const Device& device);
int backward_rows(const BackwardParams& p, const Intermediates& between, const Device& device);

}  // namespace aim_fast::cuda::simt
