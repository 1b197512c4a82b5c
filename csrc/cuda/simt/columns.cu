//     dw[range] = dz^T x, h^T dy  [H, D];   sums[range] = column sums of dz [H], of row_scale * dy [D]
//
//     Shapes    dz, h [M, H] contiguous; x, dy [M, D] by rows of any strides
//     Tiling    a CTA: 64 x 64 of one product (product.h, whose depth are the rows), or 64 columns of one of the sums
//     Order     of every sum: fixed; the ranges are summed by sum.h. The same bits from run to run
#include <algorithm>

#include "cuda/launch.h"
#include "cuda/simt/columns.h"
#include "cuda/simt/product.h"
#include "cuda/simt/rows.h"
#include "cuda/vectors.h"

namespace aim_fast::cuda::simt {
namespace {

using Tile = LargeTile;
using TileProduct = Product<Tile, Lines::kAcrossDepth, Lines::kAcrossDepth>;
constexpr int kEdge = Tile::kTileM;
constexpr int kAcross = kEdge / kVector, kDown = kThreads / kAcross;  // threads of a CTA that sums columns
constexpr int64_t kLeastRows = 64;                                    // of a range
constexpr int64_t kMostRows = 4096;  // of a range: fp32 adds up so many, and no more without its error showing
constexpr int kRowsAtOnce = 8;       // added up before they go to the sum, so that it is rounded less often
constexpr int kRounds = 2;           // of CTAs, where there are rows enough

// One of the products with the sums beside it, by CTAs of their own.
struct Part {
  Operand narrow, wide;  // dz and x; h and dy
  Operand summed;        // dz; dy
  DeviceRows row_scale;  // of what is summed
  float* sums;           // of the first range
  int tiles, ctas;       // of the product; of both
};

struct Columns {
  Part parts[2];
  int64_t M, H, D, range;
  int tiles_d;
  float* dw;  // [ranges, 2, H, D]
};

constexpr int64_t count_tiles(int64_t size) { return (size + kEdge - 1) / kEdge; }

AIM_DEVICE void sum_columns(float* shared, const Part& part, int64_t first, Depth rows, float* out) {
  const int across = threadIdx.x % kAcross * kVector, down = threadIdx.x / kAcross;
  float sum[kVector] = {};
  if (first + across < part.summed.length) {
    for (int64_t m = rows.begin + down; m < rows.end; m += kRowsAtOnce * kDown) {
      float some[kVector] = {};
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) {
        if (m + i * kDown >= rows.end) break;
        const uint32_t row = static_cast<uint32_t>(m + i * kDown);
        const float factor = part.row_scale ? load_float(part.row_scale.row(row), part.row_scale.dtype, 0) : 1.f;
        float four[kVector];
        load_four(part.summed.lines.row(row), Dtype::kFloat32, first + across, four);
#pragma unroll
        for (int j = 0; j < kVector; ++j) some[j] = fmaf(factor, four[j], some[j]);
      }
#pragma unroll
      for (int j = 0; j < kVector; ++j) sum[j] += some[j];
    }
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) shared[down * kEdge + across + i] = sum[i];
  __syncthreads();
  const int column = threadIdx.x;
  if (column >= kEdge || first + column >= part.summed.length) return;
  float total = 0.f;
#pragma unroll
  for (int i = 0; i < kDown; ++i) total += shared[i * kEdge + column];
  out[first + column] = total;
}

__global__ void __launch_bounds__(kThreads, Tile::kCtas) columns_kernel(const AIM_GRID_CONSTANT Columns call) {
  AIM_DYNAMIC_SHARED(memory);
  float* shared = reinterpret_cast<float*>(memory);
  const int which = static_cast<int>(blockIdx.x) >= call.parts[0].ctas;
  const Part& part = call.parts[which];
  const int cta = static_cast<int>(blockIdx.x) - (which ? call.parts[0].ctas : 0);
  const int64_t range = blockIdx.y, begin = range * call.range, end = begin + call.range;
  const Depth rows{begin < call.M ? begin : call.M, end < call.M ? end : call.M};
  if (cta >= part.tiles) {
    sum_columns(shared, part, int64_t{cta - part.tiles} * kEdge, rows, part.sums + range * (call.H + call.D));
    return;
  }
  float* dw = call.dw + (range * 2 + which) * call.H * call.D;
  TileProduct::run(shared, part.narrow, part.wide, int64_t{cta / call.tiles_d} * kEdge,
                   int64_t{cta % call.tiles_d} * kEdge, call.H, call.D, rows,
                   [&](int64_t h, int64_t d, float (&c)[kVector]) {
                     *reinterpret_cast<float4*>(dw + h * call.D + d) = {c[0], c[1], c[2], c[3]};
                   });
}

}  // namespace

int splits(const BackwardParams& p, const Wanted& wanted, const Device& device) {
  const int64_t products = int64_t{wanted.dw1} + wanted.dw2;
  const int64_t ctas = std::max<int64_t>(1, products * count_tiles(p.H) * count_tiles(p.D));
  const int64_t filling = std::max<int64_t>(1, std::min(kRounds * device.sms / ctas, p.M / kLeastRows));
  return static_cast<int>(std::max(filling, (p.M + kMostRows - 1) / kMostRows));
}

int backward_columns(const BackwardParams& p, const Wanted& wanted, const Intermediates& between,
                     const Device& device) {
  const Operand dz = matrix(between.dz, p.M, p.H), h = matrix(between.h, p.M, p.H);
  const Operand x{device_rows(p.x), p.M, p.D}, dy{device_rows(p.dy), p.M, p.D};
  const int tiles_d = static_cast<int>(count_tiles(p.D)), tiles_h = static_cast<int>(count_tiles(p.H));
  const int tiles_1 = wanted.dw1 ? tiles_h * tiles_d : 0, tiles_2 = wanted.dw2 ? tiles_h * tiles_d : 0;
  const int ctas_1 = tiles_1 + (wanted.db1 ? tiles_h : 0), ctas_2 = tiles_2 + (wanted.db2 ? tiles_d : 0);
  const Columns call{{{dz, x, dz, {}, between.sums, tiles_1, ctas_1},
                      {h, dy, dy, device_rows(p.row_scale), between.sums + p.H, tiles_2, ctas_2}},
                     p.M,
                     p.H,
                     p.D,
                     (p.M + between.splits - 1) / between.splits,
                     tiles_d,
                     between.dw};
  const Grid grid{dim3(static_cast<unsigned>(ctas_1 + ctas_2), between.splits), dim3(kThreads), 1,
                  TileProduct::kShared};
  return launch(columns_kernel, grid, device.stream, call);
}

}  // namespace aim_fast::cuda::simt
