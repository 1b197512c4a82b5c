// K2 on sm_90a: C [H, D] = A^T B over a range of rows, for dw1 with A = dz, B = x, and for dw2 with A = h, B = dy; the
// sums of dz's and of row_scale * dy's columns on the way.
//
// Shapes    dz, h [M, H]; x, dy [M, D]; partial results dw [splits, 2, H, D], sums [splits, H + D], fp32
// Tiling    a CTA owns a tile of one product and one range of rows, as columns_call.h says. Where H is wider than a
//           tile, the tiles above one another are a cluster, and each CTA loads its part of B for all of them
// Flow      per step of 64 rows
//           1. a warp of the third warpgroup      boxes of A and B into the next stage of a ring, by TMA
//           2. two others of it                   columns of A or of B summed, in the CTAs that have to; the last one
//                                                 brings the factors of the rows into the stage
//           3. two consumer warpgroups            wgmma from shared memory, both operands as TMA lays them down:
//                                                 contracted over rows, each is MN-major
// Memory    A and B once per tile that needs them; per range 4 H D B for each product
// Rounding  none; each element is a sum in the order of the rows
#pragma once

#include "cuda/hopper/columns_layout.h"
#include "cuda/launch.h"
#include "cuda/vectors.h"

// Kernels of this family are empty in the code for other architectures.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define AIM_HOPPER_CODE 1
#endif

namespace aim_fast::cuda::hopper {

template <class Layout>
AIM_DEVICE void load_steps(const ColumnsCall& call, const ColumnsJob& job, ColumnsRing<Layout> ring) {
  const ptx::TensorMap* hidden = &call.hidden[job.product];
  const ptx::TensorMap* wide = &call.wide[job.product];
  const int column = static_cast<int>(job.column);
#pragma unroll 1
  for (int step = job.begin; step < job.end; ++step) {
    const int row = step * kStepRows;
    ptx::mbarrier_wait(ring.empty(ring.stage), ring.phase ^ 1);
    ptx::mbarrier_expect(ring.full(), Layout::kStageBytes);
#pragma unroll 1
    for (int box = 0; box < Layout::kPlan.tile_h / 64; ++box) {
      ptx::tma_load(ring.data() + box * Layout::kBoxBytes, hidden, ring.full(),
                    job.rank * Layout::kPlan.tile_h + box * 64, row);
    }
#pragma unroll 1
    for (int box = job.rank; box < Layout::kPlan.tile_d / 64; box += Layout::kCluster) {
      const uint32_t to = ring.data() + Layout::kHiddenBytes + box * Layout::kBoxBytes;
      if constexpr (Layout::kCluster == 1) {
        ptx::tma_load(to, wide, ring.full(), column + box * 64, row);
      } else {
        ptx::tma_load_multicast(to, wide, ring.full(), column + box * 64, row, (1 << Layout::kCluster) - 1);
      }
    }
    ring.advance();
  }
}

// The factors of each step's rows, into its stage.
template <class Layout>
AIM_DEVICE void load_factors(const ColumnsCall& call, const ColumnsJob& job, ColumnsRing<Layout> ring, float* factors) {
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int step = job.begin; step < job.end; ++step) {
    ptx::mbarrier_wait(ring.empty(ring.stage), ring.phase ^ 1);
#pragma unroll
    for (int row = lane; row < kStepRows; row += 32) {
      const uint32_t m = static_cast<uint32_t>(step) * kStepRows + row;
      factors[ring.stage * kStepRows + row] =
          m < call.M ? load_float(call.row_scale.row(m), call.row_scale.dtype, 0) : 0.f;
    }
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(ring.full());
    ring.advance();
  }
}

// Sums of kColumns columns that begin `offset` bytes into a stage, each times its row's factor unless `factors` is
// null; a thread sums four, and four that lie 256 further where there are so many. out is the place of the first
// column, of which `columns` exist.
template <class T, int kColumns, class Layout>
AIM_DEVICE void sum_columns(const uint8_t* shared, int offset, const float* factors, const ColumnsJob& job,
                            ColumnsRing<Layout> ring, float* out, int64_t columns) {
  constexpr int kAtOnce = 4 * kSumThreads, kTurns = (kColumns + kAtOnce - 1) / kAtOnce;
  const int first = 4 * (threadIdx.x % 128 - 32);
  float sum[kTurns][4] = {};
#pragma unroll 1
  for (int step = job.begin; step < job.end; ++step) {
    ptx::mbarrier_wait(ring.full(), ring.phase);
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int column = first + turn * kAtOnce;
      if (column >= kColumns) break;
      const uint8_t* box = shared + ring.stage * Layout::kStageBytes + offset + column / 64 * Layout::kBoxBytes;
#pragma unroll 8
      for (int row = 0; row < kStepRows; ++row) {
        // 16-byte units of a box's row are swizzled by the row.
        const int unit = column % 64 / 8 ^ row % 8;
        const uint2 values = *reinterpret_cast<const uint2*>(box + row * 128 + unit * 16 + column % 8 * 2);
        const float factor = factors ? factors[ring.stage * kStepRows + row] : 1.f;
        sum[turn][0] += factor * ptx::low<T>(values.x);
        sum[turn][1] += factor * ptx::high<T>(values.x);
        sum[turn][2] += factor * ptx::low<T>(values.y);
        sum[turn][3] += factor * ptx::high<T>(values.y);
      }
    }
    ring.release(ring.stage);
    ring.advance();
  }
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int column = first + turn * kAtOnce;
    if (column >= kColumns || column >= columns) break;
    ptx::store_float2(out + column, sum[turn][0], sum[turn][1]);
    ptx::store_float2(out + column + 2, sum[turn][2], sum[turn][3]);
  }
}

template <class T, class Layout>
AIM_DEVICE void multiply_steps(const ColumnsCall& call, const ColumnsJob& job, ColumnsRing<Layout> ring, int consumer,
                               int64_t H) {
  constexpr int kBlocks = Layout::kBlocks, kWidth = Layout::kWidth;
  const int block_h = consumer % Layout::kPlan.along_h * kBlocks;  // the first of its 64 rows of H
  const int column = consumer / Layout::kPlan.along_h * kWidth;
  float sum[kBlocks][kWidth / 2];
  auto multiply = [&](bool first) {
    const uint32_t a = ring.data() + block_h * Layout::kBoxBytes;
    const uint32_t b = ring.data() + Layout::kHiddenBytes + column / 64 * Layout::kBoxBytes;
    ptx::mbarrier_wait(ring.full(), ring.phase);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kStepRows / 16; ++k) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        ptx::Wgmma<kWidth, T, true, true>::ss(
            sum[block], ptx::descriptor_mn_major(a + block * Layout::kBoxBytes, Layout::kBoxBytes) + 128 * k,
            ptx::descriptor_mn_major(b, Layout::kBoxBytes) + 128 * k, !(first && k == 0));
      }
    }
    ptx::wgmma_commit();
  };
  // The first step overwrites the accumulators by a constant in the instruction, which spares their zeroing. A stage is
  // released when the step after it has been issued and its own has ended.
  multiply(true);
  int last = ring.stage;
  ring.advance();
#pragma unroll 1
  for (int step = job.begin + 1; step < job.end; ++step) {
    multiply(false);
    ptx::wgmma_wait<1>();
    ring.release(last);
    last = ring.stage;
    ring.advance();
  }
  ptx::wgmma_wait<0>();
  ring.release(last);
  ptx::allow_next_launch();
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) ptx::wgmma_landed(sum[block]);

  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int64_t D = call.D, d = job.column + column + lane % 4 * 2;
  const int64_t h = job.rank * Layout::kPlan.tile_h + block_h * 64 + warp * 16 + lane / 4;
  float* out = call.dw + ((int64_t{job.split} * 2 + job.product) * H + h) * D + d;
#pragma unroll
  for (int j = 0; j < kWidth / 8; ++j) {
    if (d + j * 8 >= D) break;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* pair = &sum[block][j * 4 + half * 2];
        ptx::store_float2(out + (block * 64 + half * 8) * D + j * 8, pair[0], pair[1]);
      }
    }
  }
}

template <class T, int H>
__global__ void __launch_bounds__(kColumnsThreads, 1) columns_kernel(const AIM_GRID_CONSTANT ColumnsCall call) {
#ifdef AIM_HOPPER_CODE
  using Layout = ColumnsLayout<H>;
  constexpr int kTileH = Layout::kPlan.tile_h;
  AIM_DYNAMIC_SHARED(shared);
  const ColumnsJob job = ColumnsJob::of<Layout>(call);
  const ColumnsRing<Layout> ring{ptx::shared_address(shared)};
  const int warpgroup = threadIdx.x / 128, warp = threadIdx.x / 32 % 4;
  // Of the CTAs with the same A the first sums A's columns; of those with the same B the first sums B's.
  const bool sums_hidden = call.sum_hidden && job.product == 0 && job.column == 0;
  const bool sums_wide = call.sum_wide && job.product == 1 && job.rank == 0, scaled = sums_wide && call.row_scale;
  if (threadIdx.x == 0) {
    // Who sums, of the cluster: all its CTAs their rows of A, or the first the columns of B.
    const int summing = sums_hidden ? Layout::kCluster : call.sum_wide && job.product == 1;
    ring.initialize(1 + scaled, kConsumers * 4 * Layout::kCluster + kSumThreads / 32 * summing);
  }
  if constexpr (Layout::kCluster > 1)
    ptx::cluster_sync();
  else
    __syncthreads();

  if (warpgroup < kConsumers) {
    ptx::raise_registers<kConsumerRegisters>();
    multiply_steps<T>(call, job, ring, warpgroup, H);
  } else {
    ptx::lower_registers<kProducerRegisters>();  // by the whole warpgroup, before its warps part
    float* factors = reinterpret_cast<float*>(shared + Layout::kFactors);
    float* sums = call.sums + job.split * (H + call.D);
    if (warp == 0) {
      if (threadIdx.x % 32 == 0) load_steps(call, job, ring);
      __syncwarp();
    } else if (warp == 3) {
      if (scaled) load_factors(call, job, ring, factors);
    } else if (sums_hidden) {
      sum_columns<T, kTileH>(shared, 0, nullptr, job, ring, sums + job.rank * kTileH, kTileH);
    } else if (sums_wide) {
      sum_columns<T, Layout::kPlan.tile_d>(shared, Layout::kHiddenBytes, scaled ? factors : nullptr, job, ring,
                                           sums + H + job.column, call.D - job.column);
    }
  }
  // No CTA ends while another may still write to its shared memory or arrive at its barriers.
  if constexpr (Layout::kCluster > 1) ptx::cluster_sync();
#endif
}

template <class T, int H>
int launch_columns(const ColumnsCall& call, void* stream) {
  using Layout = ColumnsLayout<H>;
  const int64_t clusters = call.splits * call.products * tiles_of(call.D, Layout::kPlan.tile_d);
  const Grid grid{dim3(static_cast<unsigned>(clusters * Layout::kCluster)), dim3(kColumnsThreads), Layout::kCluster,
                  Layout::kSharedBytes};
  return launch(columns_kernel<T, H>, grid, stream, call);
}

}  // namespace aim_fast::cuda::hopper
