// What K2 of the backward is told, and how its work is shared out over CTAs.
//
// A CTA forms a tile of one product over one range of rows, or, where only its column sums are wanted, those alone.
// The CTAs of a range (blockIdx.y) run beside each other, so that what they share comes from L2.
#pragma once

#include <algorithm>

#include "cuda/ampere/tiles.h"
#include "cuda/kernels.h"
#include "cuda/rows.h"

namespace aim_fast::cuda::ampere {

constexpr int kTileD = 128;       // columns of x or dy in a tile
constexpr int kColumnsStep = 32;  // rows that are read at a time

// One of dw1 = dz^T x with the column sums of dz, and dw2^T = h^T dy with those of row_scale * dy.
struct ColumnsPart {
  char* narrow;     // dz or h, [M, H] contiguous
  DeviceRows wide;  // x or dy, rows of D
  bool multiplies;
  bool sums;
  bool sums_wide;  // of the columns of `wide`; else of `narrow`
  int ctas;        // to a range of rows
};

struct ColumnsCall {
  uint32_t M;
  int D, H;
  uint32_t range;  // rows to a range, a multiple of kColumnsStep
  int tiles_h;     // across H
  ColumnsPart parts[2];
  DeviceRows row_scale;
  float* dw;    // [ranges, 2, H, D]
  float* sums;  // [ranges, H + D]
};

// Columns of dz or h in a tile: all of H if they are at most 192, else halves of 256.
inline int tile_h(int64_t H) { return H <= 64 ? 64 : H <= 128 || H > 192 ? 128 : 192; }

// CTAs that a multiprocessor holds: what bounds their registers.
template <int kTileH>
constexpr int kColumnsCtas = kTileH <= 128 ? 2 : 1;

inline int count_tiles(int64_t size, int tile) { return static_cast<int>((size + tile - 1) / tile); }

// CTAs to a range of rows for a product, or for the sums of its columns alone.
inline int part_ctas(const Problem& p, bool multiplies, bool sums, bool sums_wide) {
  const int tiles_h = count_tiles(p.H, tile_h(p.H)), tiles_d = count_tiles(p.D, kTileD);
  return multiplies ? tiles_h * tiles_d : !sums ? 0 : sums_wide ? tiles_d : tiles_h;
}

// Rows of each of `ranges` ranges, in whole steps.
inline uint32_t rows_of_range(int64_t M, int ranges) {
  return static_cast<uint32_t>(count_tiles(count_tiles(M, ranges), kColumnsStep) * kColumnsStep);
}

// Ranges of rows: as many as make one wave of CTAs, but each long enough to be worth its partial results.
inline int splits(const BackwardParams& p, const Wanted& wanted, const Device& device) {
  constexpr int kLeastRows = 128;
  const int ctas = part_ctas(p, wanted.dw1, wanted.db1, false) + part_ctas(p, wanted.dw2, wanted.db2, true);
  const int wave = device.sms * (tile_h(p.H) <= 128 ? kColumnsCtas<128> : kColumnsCtas<192>);
  const int ranges = std::clamp(wave / ctas, 1, count_tiles(p.M, kLeastRows));
  return count_tiles(p.M, static_cast<int>(rows_of_range(p.M, ranges)));
}

}  // namespace aim_fast::cuda::ampere
