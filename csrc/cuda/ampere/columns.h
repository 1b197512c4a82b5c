// K2 of the backward for sm_80 and up: sums over rows, each range of rows for itself.
//
//     dw[range] = dz^T x, h^T dy  [H, D];   sums[range] = column sums of dz [H], of row_scale * dy [D]
//
//     Shapes    dz, h [M, H] contiguous; x, dy [M, D] by rows of any strides; all in T
//     Tiling    a CTA: kTileH x 128 of one product, 8 warps of kTileH / 4 x 64; or column sums alone
//     Flow      a ring of kColumnsStages slots that cp.async fills ahead, 32 rows a step, one barrier a step; both
//               operands have the rows as their depth, so that ldmatrix transposes both
//     Memory    slot = [32, kTileH] | [32, 128]; beside the ring where rows lie, found one step before they are loaded
//     Order     of every sum: that of the rows; the ranges are summed by sum.h. The same bits from run to run
#pragma once

#include "cuda/ampere/columns_call.h"
#include "cuda/launch.h"
#include "cuda/vectors.h"

namespace aim_fast::cuda::ampere {

constexpr int kColumnsThreads = 256;
constexpr int kColumnsStages = 4;
constexpr int kFoundSteps = 2 * kColumnsStages;  // of which the rows' places are kept

template <int kTileH>
struct ColumnsShared {
  uint8_t ring[kColumnsStages][kColumnsStep * (kTileH + kTileD) * 2];
  const char* wide[kFoundSteps][kColumnsStep];
  float row_scale[kFoundSteps][kColumnsStep];  // 0 beyond the range
};
static_assert(sizeof(ColumnsShared<192>) <= kMaxShared);

template <class T, int kTileH>
struct ColumnsTile {
  static constexpr int kPitchH = kTileH * 2, kPitchD = kTileD * 2;
  static constexpr int kNarrowBytes = kColumnsStep * kPitchH;                // of a slot, before the other operand
  static constexpr int kTilesH = kTileH / 4 / 16, kTilesD = kTileD / 2 / 8;  // of a warp, 16 and 8 columns

  const ColumnsCall& call;
  ColumnsShared<kTileH>& shared;
  const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  int which;  // of the two products
  int first_h, first_d;
  bool sums;
  uint32_t begin, end;  // rows
  int filled = 0, entered = 0;

  AIM_DEVICE ColumnsTile(const ColumnsCall& call, uint8_t* memory)
      : call(call), shared(*reinterpret_cast<ColumnsShared<kTileH>*>(memory)) {
    int cta = blockIdx.x;
    which = cta >= call.parts[0].ctas;
    cta -= which ? call.parts[0].ctas : 0;
    const ColumnsPart& part = call.parts[which];
    int tile_of_h = 0, tile_of_d = 0;
    if (part.multiplies) {
      tile_of_h = cta % call.tiles_h;
      tile_of_d = cta / call.tiles_h;
    } else if (part.sums_wide) {
      tile_of_d = cta;
    } else {
      tile_of_h = cta;
    }
    first_h = tile_of_h * kTileH;
    first_d = tile_of_d * kTileD;
    // Each column is summed by one CTA, the first of those that read it.
    sums = part.sums && (part.sums_wide ? tile_of_h : tile_of_d) == 0;
    const int64_t from = int64_t{blockIdx.y} * call.range, to = from + call.range;
    begin = static_cast<uint32_t>(from < call.M ? from : call.M);
    end = static_cast<uint32_t>(to < call.M ? to : call.M);
  }

  AIM_DEVICE const ColumnsPart& part() const { return call.parts[which]; }
  AIM_DEVICE int steps() const { return static_cast<int>((end - begin + kColumnsStep - 1) / kColumnsStep); }

  // ---- the ring

  // Where row `row` of a step lies.
  AIM_DEVICE void find_row(int step, int row) {
    const int64_t m = int64_t{begin} + int64_t{step} * kColumnsStep + row;
    const bool inside = m < end;
    const uint32_t valid = static_cast<uint32_t>(inside ? m : call.M - 1);
    shared.wide[step % kFoundSteps][row] = part().wide.row(valid);
    float scale = inside ? 1.f : 0.f;
    if (inside && call.row_scale) scale = load_float(call.row_scale.row(valid), call.row_scale.dtype, 0);
    shared.row_scale[step % kFoundSteps][row] = scale;
  }

  AIM_DEVICE void start() {
    if (threadIdx.x < kColumnsStages * kColumnsStep) {
      find_row(static_cast<int>(threadIdx.x) / kColumnsStep, threadIdx.x % kColumnsStep);
    }
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < kColumnsStages - 1; ++i) fill();
  }

  // Issues the loads of a step; each is one group, those past the end empty.
  AIM_DEVICE void fill() {
    uint8_t* slot = shared.ring[filled % kColumnsStages];
    if (filled < steps()) {
      const uint32_t first = begin + static_cast<uint32_t>(filled) * kColumnsStep;
      if (part().multiplies || !part().sums_wide) fill_narrow(slot, first);
      if (part().multiplies || part().sums_wide) fill_wide(slot + kNarrowBytes, first);
    }
    ptx::cp_async_commit();
    ++filled;
  }

  AIM_DEVICE void fill_narrow(uint8_t* tile, uint32_t first) const {
    constexpr int kChunks = kTileH / kChunk;
#pragma unroll
    for (int i = 0; i < kColumnsStep * kChunks / kColumnsThreads; ++i) {
      const int at = static_cast<int>(threadIdx.x) + i * kColumnsThreads, row = at / kChunks, chunk = at % kChunks;
      const int column = first_h + chunk * kChunk;
      const bool inside = first + row < end && column < call.H;
      const int64_t from = inside ? int64_t{first + row} * call.H + column : 0;
      ptx::cp_async_16(tile + chunk_offset<kPitchH>(row, chunk), part().narrow + 2 * from, inside);
    }
  }

  AIM_DEVICE void fill_wide(uint8_t* tile, uint32_t first) const {
    constexpr int kChunks = kTileD / kChunk;
    const char* const(&rows)[kColumnsStep] = shared.wide[filled % kFoundSteps];
#pragma unroll
    for (int i = 0; i < kColumnsStep * kChunks / kColumnsThreads; ++i) {
      const int at = static_cast<int>(threadIdx.x) + i * kColumnsThreads, row = at / kChunks, chunk = at % kChunks;
      const int column = first_d + chunk * kChunk;
      const bool inside = first + row < end && column < call.D;
      ptx::cp_async_16(tile + chunk_offset<kPitchD>(row, chunk), rows[row] + (inside ? int64_t{column} * 2 : 0),
                       inside);
    }
  }

  // Waits for the next step's slot, and sets the loads going of the step that gets the slot before it.
  AIM_DEVICE uint8_t* enter() {
    ptx::cp_async_wait<kColumnsStages - 2>();
    __syncthreads();
    fill();
    // The rows of the step that is filled at the next entry.
    if (threadIdx.x < kColumnsStep) find_row(filled, threadIdx.x);
    return shared.ring[entered++ % kColumnsStages];
  }

  // ---- the product

  AIM_DEVICE void multiply(float (&dw)[kTilesH][kTilesD][4], const uint8_t* slot) const {
    const int own_h = warp % 4 * (kTileH / 4), own_d = warp / 4 * (kTileD / 2);
#pragma unroll
    for (int k = 0; k < kColumnsStep; k += 16) {
      // The matrices of a load are those of a fragment A of the transposed tile: (h 0..7, rows 0..7), (8..15, 0..7),
      // (0..7, 8..15), (8..15, 8..15).
      uint32_t a[kTilesH][4];
#pragma unroll
      for (int i = 0; i < kTilesH; ++i) {
        const uint32_t at = chunk_offset<kPitchH>(lane % 8 + lane / 16 * 8, (own_h + i * 16) / kChunk + lane / 8 % 2);
        ptx::ldmatrix_x4_trans(a[i], slot + at + k * kPitchH);
      }
#pragma unroll
      for (int j = 0; j < kTilesD; j += 2) {
        uint32_t b[4];
        const uint32_t at = chunk_offset<kPitchD>(lane % 16, own_d / kChunk + j + lane / 16);
        ptx::ldmatrix_x4_trans(b, slot + kNarrowBytes + at + k * kPitchD);
#pragma unroll
        for (int i = 0; i < kTilesH; ++i) {
          ptx::mma<T>(dw[i][j], a[i], b[0], b[1]);
          ptx::mma<T>(dw[i][j + 1], a[i], b[2], b[3]);
        }
      }
    }
  }

  AIM_DEVICE void store_product(const float (&dw)[kTilesH][kTilesD][4]) const {
    float* to = call.dw + (int64_t{blockIdx.y} * 2 + which) * call.H * call.D;
#pragma unroll
    for (int i = 0; i < kTilesH; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int h = first_h + warp % 4 * (kTileH / 4) + i * 16 + half * 8 + lane / 4;
        if (h >= call.H) continue;
#pragma unroll
        for (int j = 0; j < kTilesD; ++j) {
          const int d = first_d + warp / 4 * (kTileD / 2) + j * 8 + lane % 4 * 2;
          if (d < call.D) ptx::store_float2(to + int64_t{h} * call.D + d, dw[i][j][2 * half], dw[i][j][2 * half + 1]);
        }
      }
    }
  }

  // ---- the column sums; a thread has two columns of some of a step's rows

  template <int kWidth>
  struct Share {
    static constexpr int kPairs = kWidth / 2, kGroups = kColumnsThreads / kPairs;
    static constexpr int kRows = kColumnsStep / kGroups;
    static_assert(kGroups * kRows == kColumnsStep);
  };

  // tile [32, kWidth], the step's; scales: a factor a row, or null.
  template <int kWidth>
  AIM_DEVICE static void add_columns(float2& sum, const uint8_t* tile, const float* scales) {
    using Own = Share<kWidth>;
    const int pair = threadIdx.x % Own::kPairs, group = threadIdx.x / Own::kPairs;
    if (group >= Own::kGroups) return;
#pragma unroll
    for (int i = 0; i < Own::kRows; ++i) {
      const int row = group * Own::kRows + i;
      const uint32_t both = ptx::load32(tile + chunk_offset<kWidth * 2>(row, pair / 4) + pair % 4 * 4);
      const float scale = scales ? scales[row] : 1.f;
      sum.x = fmaf(ptx::low<T>(both), scale, sum.x);
      sum.y = fmaf(ptx::high<T>(both), scale, sum.y);
    }
  }

  // The groups' sums through shared memory, in their order, into out [columns].
  template <int kWidth>
  AIM_DEVICE void store_columns(float2 sum, float* out, int columns) const {
    using Own = Share<kWidth>;
    __syncthreads();  // the ring is free
    float* all = reinterpret_cast<float*>(shared.ring);
    if (threadIdx.x < Own::kGroups * Own::kPairs) ptx::store_float2(all + threadIdx.x * 2, sum.x, sum.y);
    __syncthreads();
    const int column = threadIdx.x;
    if (column >= kWidth || column >= columns) return;
    float total = 0.f;
#pragma unroll
    for (int group = 0; group < Own::kGroups; ++group) total += all[group * kWidth + column];
    out[column] = total;
  }
};

template <class T, int kTileH>
__global__ void __launch_bounds__(kColumnsThreads, kColumnsCtas<kTileH>)
    columns_kernel(const AIM_GRID_CONSTANT ColumnsCall call) {
  AIM_DYNAMIC_SHARED(memory);
  using Tile = ColumnsTile<T, kTileH>;
  Tile tile(call, memory);
  const bool multiplies = tile.part().multiplies, sums_wide = tile.part().sums_wide;
  tile.start();

  float dw[Tile::kTilesH][Tile::kTilesD][4] = {};
  float2 sum = {0.f, 0.f};
  const int steps = tile.steps();
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const uint8_t* slot = tile.enter();
    if (multiplies) tile.multiply(dw, slot);
    if (tile.sums && sums_wide) {
      Tile::template add_columns<kTileD>(sum, slot + Tile::kNarrowBytes, tile.shared.row_scale[step % kFoundSteps]);
    } else if (tile.sums) {
      Tile::template add_columns<kTileH>(sum, slot, nullptr);
    }
  }
  if (multiplies) tile.store_product(dw);
  if (tile.sums) {
    float* out = call.sums + int64_t{blockIdx.y} * (call.H + call.D);
    if (sums_wide) {
      tile.template store_columns<kTileD>(sum, out + call.H + tile.first_d, call.D - tile.first_d);
    } else {
      tile.template store_columns<kTileH>(sum, out + tile.first_h, call.H - tile.first_h);
    }
  }
}

template <class T, int kTileH>
int launch_columns(const ColumnsCall& call, int ranges, void* stream) {
  const Grid grid{dim3(call.parts[0].ctas + call.parts[1].ctas, ranges), dim3(kColumnsThreads), 1,
                  sizeof(ColumnsShared<kTileH>)};
  return launch(columns_kernel<T, kTileH>, grid, stream, call);
}

}  // namespace aim_fast::cuda::ampere
