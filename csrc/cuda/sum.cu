// The sums of the ranges' partial results, and from them the gradients of the parameters.
//
//     dw1 [H, D] = sum of dw[., 0]        dw2 [D, H] = alpha scale_d P[h, d], P [H, D] = sum of dw[., 1]
//     db1 [H], db2 [D] from sums [., H + D] alike;  dscale_d = alpha (sum over h of w2[d, h] P[h, d] + b2_d q_d)
//
// Tiling    a block of 256 threads to 32 x 32 of a product, or to 256 columns of the sums
// Flow      1. a thread reads four neighbours of each range, in the ranges' order; dw2 turns its tile in shared memory
//           2. dscale: each tile of P leaves its part of the sum over h in the workspace, where its first row was, and
//              q is left alike; a second kernel adds these, and where the scale is one number, over all d
// Memory    4 B per range and element of what is wanted, read once; nothing else of the workspace is read
// Rounding  once, from fp32 to the dtype of the parameter
#include <algorithm>

#include "cuda/launch.h"
#include "cuda/sum.h"
#include "cuda/vectors.h"

namespace aim_fast::cuda {
namespace {

constexpr int kTile = 32;
constexpr int kThreads = 256;
constexpr int kPerThread = 4;  // of a tile: neighbours in a row, a vector
constexpr int kPerRow = kTile / kPerThread;
constexpr int kRowsAtOnce = kThreads / kTile;  // of a tile, when dw2 goes through it column by column
constexpr int kScaleThreads = 1024;

struct Sum {
  float* dw;    // [splits, 2, H, D]
  float* sums;  // [splits, H + D]
  int64_t D, H;
  int splits;
  Array dw1, dw2, db1, db2, dscale;
  Array w2, b2, scale;
  int64_t scale_size;
  float alpha;

  constexpr int64_t tiles_of_d() const { return (D + kTile - 1) / kTile; }
  constexpr int64_t tiles() const { return tiles_of_d() * ((H + kTile - 1) / kTile); }
  constexpr bool wants_q() const { return db2 || (dscale && b2); }
  // alpha * scale_d
  AIM_DEVICE float factor(int64_t d) const {
    return scale ? alpha * load_float(scale.data, scale.dtype, scale_size > 1 ? d : 0) : alpha;
  }
  // Column i of the sums, over all ranges; in double, since rounding each of hundreds in fp32 showed.
  AIM_DEVICE float column(int64_t i) const {
    double total = 0;
#pragma unroll 8
    for (int split = 0; split < splits; ++split) total += sums[split * (H + D) + i];
    return static_cast<float>(total);
  }
};

// Elements (h, d) to (h, d + 3) of one product, over all ranges; 0 beyond the matrix. D is a multiple of 4.
AIM_DEVICE void sum_ranges(const Sum& sum, int product, int64_t h, int64_t d, float (&total)[kPerThread]) {
  const int64_t size = sum.H * sum.D;
  const float* first = sum.dw + product * size + h * sum.D + d;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) total[i] = 0.f;
  if (h >= sum.H || d >= sum.D) return;
  constexpr int kAhead = 8;
  for (int split = 0; split < sum.splits; split += kAhead) {
    float4 parts[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (split + i < sum.splits) parts[i] = *reinterpret_cast<const float4*>(first + 2 * (split + i) * size);
    }
    float some[kPerThread] = {};  // so that the total is rounded less often
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (split + i >= sum.splits) break;
      some[0] += parts[i].x;
      some[1] += parts[i].y;
      some[2] += parts[i].z;
      some[3] += parts[i].w;
    }
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) total[i] += some[i];
  }
}

AIM_DEVICE void write_dw1(const Sum& sum, int64_t h0, int64_t d0) {
  const int64_t h = h0 + threadIdx.x / kPerRow, d = d0 + threadIdx.x % kPerRow * kPerThread;
  float total[kPerThread];
  sum_ranges(sum, 0, h, d, total);
  if (h >= sum.H || d >= sum.D) return;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) store_float(sum.dw1.data, sum.dw1.dtype, h * sum.D + d + i, total[i]);
}

// dw2, and the tile's part of dscale.
AIM_DEVICE void write_dw2(const Sum& sum, int64_t h0, int64_t d0) {
  __shared__ float tile[kTile][kTile + 1];  // [h, d]; the odd pitch keeps columns on different banks
  const int row_of_tile = threadIdx.x / kPerRow, column = threadIdx.x % kPerRow * kPerThread;
  float total[kPerThread];
  sum_ranges(sum, 1, h0 + row_of_tile, d0 + column, total);
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) tile[row_of_tile][column + i] = total[i];
  __syncthreads();
  const int x = threadIdx.x % kTile, y = threadIdx.x / kTile;
  const int64_t h = h0 + x;
#pragma unroll
  for (int row = y; row < kTile; row += kRowsAtOnce) {
    const int64_t d = d0 + row;  // the same for the whole warp
    if (d >= sum.D) break;
    const float value = tile[x][row];
    if (sum.dw2 && h < sum.H) store_float(sum.dw2.data, sum.dw2.dtype, d * sum.H + h, sum.factor(d) * value);
    if (!sum.dscale) continue;
    float part = h < sum.H ? load_float(sum.w2.data, sum.w2.dtype, d * sum.H + h) * value : 0.f;
#pragma unroll
    for (int lanes = kTile / 2; lanes > 0; lanes /= 2) part += __shfl_xor_sync(~0u, part, lanes);
    // Every range's element there was read before the barrier, and by this block alone.
    if (x == 0) sum.dw[(sum.H + h0) * sum.D + d] = part;
  }
}

// db1, db2, and q for dscale, left where the first range's was.
AIM_DEVICE void write_biases(const Sum& sum, int64_t i) {
  if (i < sum.H) {
    if (sum.db1) store_float(sum.db1.data, sum.db1.dtype, i, sum.column(i));
  } else if (i < sum.H + sum.D && sum.wants_q()) {
    const int64_t d = i - sum.H;
    const float total = sum.column(i);
    if (sum.db2) store_float(sum.db2.data, sum.db2.dtype, d, sum.factor(d) * total);
    if (sum.dscale) sum.sums[i] = total;
  }
}

__global__ void __launch_bounds__(kThreads)
    sum_kernel(const AIM_GRID_CONSTANT Sum sum, int64_t tiles_of_dw1, int64_t tiles_of_dw2) {
  ptx::wait_for_launch_before();
  int64_t tile = blockIdx.x;
  if (tile >= tiles_of_dw1 + tiles_of_dw2) {
    write_biases(sum, (tile - tiles_of_dw1 - tiles_of_dw2) * kThreads + threadIdx.x);
    return;
  }
  const bool of_dw1 = tile < tiles_of_dw1;
  if (!of_dw1) tile -= tiles_of_dw1;
  const int64_t h0 = tile / sum.tiles_of_d() * kTile, d0 = tile % sum.tiles_of_d() * kTile;
  if (of_dw1)
    write_dw1(sum, h0, d0);
  else
    write_dw2(sum, h0, d0);
}

// dscale [D], a thread each; or [1], by one block.
__global__ void __launch_bounds__(kScaleThreads) scale_kernel(const AIM_GRID_CONSTANT Sum sum) {
  __shared__ double totals[kScaleThreads];
  const int thread = threadIdx.x;
  double total = 0;
  for (int64_t d = int64_t{blockIdx.x} * kScaleThreads + thread; d < sum.D; d += int64_t{gridDim.x} * kScaleThreads) {
    double value = 0;
#pragma unroll 8
    for (int64_t h = 0; h < sum.H; h += kTile) value += sum.dw[(sum.H + h) * sum.D + d];
    if (sum.b2) value += double{load_float(sum.b2.data, sum.b2.dtype, d)} * sum.sums[sum.H + d];
    if (sum.scale_size > 1) store_float(sum.dscale.data, sum.dscale.dtype, d, static_cast<float>(sum.alpha * value));
    total += value;
  }
  if (sum.scale_size > 1) return;
  totals[thread] = total;
  __syncthreads();
  for (int half = kScaleThreads / 2; half > 0; half /= 2) {
    if (thread < half) totals[thread] += totals[thread + half];
    __syncthreads();
  }
  if (thread == 0) store_float(sum.dscale.data, sum.dscale.dtype, 0, static_cast<float>(sum.alpha * totals[0]));
}

}  // namespace

int sum_partials(const BackwardParams& p, const Intermediates& between, const Device& device) {
  const Sum sum{between.dw, between.sums, p.D,  p.H,  between.splits, p.dw1,        p.dw2,  p.db1,
                p.db2,      p.dscale,     p.w2, p.b2, p.scale,        p.scale_size, p.alpha};
  const int64_t tiles = sum.tiles(), tiles_of_dw1 = p.dw1 ? tiles : 0, tiles_of_dw2 = p.dw2 || p.dscale ? tiles : 0;
  const int64_t biases = p.db1 || sum.wants_q() ? (p.H + p.D + kThreads - 1) / kThreads : 0;
  const int64_t blocks = tiles_of_dw1 + tiles_of_dw2 + biases;
  int error = 0;
  if (blocks) {
    const Grid grid{dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 1, 0, device.early};
    error = launch(sum_kernel, grid, device.stream, sum, tiles_of_dw1, tiles_of_dw2);
  }
  if (error || !p.dscale) return error;
  const int64_t scale_blocks = p.scale_size > 1 ? (p.D + kScaleThreads - 1) / kScaleThreads : 1;
  return launch(scale_kernel, Grid{dim3(static_cast<unsigned>(scale_blocks)), dim3(kScaleThreads)}, device.stream, sum);
}

}  // namespace aim_fast::cuda
