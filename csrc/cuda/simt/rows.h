// The products by rows, the tiles that they choose from, and the operands that they and K2 read.
#pragma once

#include "cuda/kernels.h"
#include "cuda/simt/clusters.h"
#include "cuda/simt/product.h"

namespace aim_fast::cuda::simt {

using LargeTile = Tiling<64, 64, 8, 4, 32, 3, 2>;
using MiddleTile = Tiling<32, 32, 4, 4, 32, 3, 2>;
using SmallTile = Tiling<16, 16, 4, 2, 64, 5, 2>;
using Tile3 = Tiling<128, 64, 8, 8, 32, 3, 1>;
using Tile4 = Tiling<128, 128, 8, 8, 32, 3, 1>;
constexpr int kTiles = 5;  // the plans: one of them for both products

// The forced plan's tile, 0 to 2 from the largest, or the one that a product [M, N] takes the fewest cycles with:
// rounds of CTAs, each with a start and with its multiply-adds at a share of the 128 a cycle. A guess of proportions.
inline int choose_tile(int64_t M, int64_t N, int64_t depth, const Device& device) {
  if (device.plan >= 0 && device.plan < kTiles) return device.plan;  // ClusterTile has its own kernel
  constexpr int kEdges[] = {64, 32, 16};
  constexpr double kShare[] = {0.6, 0.4, 0.25}, kStart = 1500;
  int best = 0;
  double least = 0;
  for (int tile = 0; tile < 3; ++tile) {
    const int64_t edge = kEdges[tile], ctas = ((M + edge - 1) / edge) * ((N + edge - 1) / edge);
    const double work = static_cast<double>(edge * edge * depth) / (128 * kShare[tile]);
    const double cycles = static_cast<double>((ctas + device.sms - 1) / device.sms) * (kStart + work);
    if (tile > 0 && cycles >= least) continue;
    least = cycles;
    best = tile;
  }
  return best;
}

// Whether clusters form both products in one launch: where they are all at work at once.
inline bool uses_cluster(int64_t M, const Device& device) {
  if (device.plan >= 0) return device.plan == kTiles;
  return (M + ClusterTile::kTileM - 1) / ClusterTile::kTileM * kCluster <= device.sms;
}

// A contiguous matrix of fp32.
Operand matrix(const char* data, int64_t rows, int64_t columns);

int forward(const ForwardParams& p, const Intermediates& between, const Device& device);
int backward_rows(const BackwardParams& p, const Intermediates& between, const Device& device);

}  // namespace aim_fast::cuda::simt
