// The row kernels on sm_90a: the forward, and K1 of the backward.
//
//     forward  z = x w1^T + b1,  y = alpha scale row_scale (act(z) w2^T + b2) [+ x] [+ residual]
//
//     K1       dz = alpha scale row_scale (dy w2) act'(z),  dx = dz w1 [+ dy];  h = row_scale act(z)
//
// Shapes    x, y, dy, dx [M, D]; z, dz, h [M, H]; w1 [H, D]; w2 [D, H]; H is compiled in, D any multiple of 64
// Tiling    persistent: a CTA takes blocks of 64 rows a consumer warpgroup; two CTAs of a cluster share the weights
// Flow      a producer thread streams 64 columns of rows and weights a step through a ring in shared memory, by TMA
//           1. per step: z += x_tile w1_tile^T               wgmma, accumulators [64, H]
//           2. hidden = act(z), rounded once                 registers, the second product's operand
//           3. per step: y_tile = hidden w2_tile^T + ...     wgmma, an accumulator [64, 64]
//           K1 reads the same tiles: w2 first, then w1, each transposed by wgmma (MN-major)
// Memory    ROWS.md
// Rounding  hidden, y; K1: dz, dx. z as stored is rounded, act takes it unrounded
#pragma once

#include "cuda/hopper/rows_consumer.h"
#include "cuda/hopper/rows_producer.h"
#include "cuda/launch.h"

namespace aim_fast::cuda::hopper {

template <class Plan>
__global__ void __launch_bounds__(Plan::kThreads, 1) rows_kernel(const AIM_GRID_CONSTANT RowsCall call) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  AIM_DYNAMIC_SHARED(memory);
  const int consumers = call.grid.consumers, cluster = call.grid.cluster;
  const Ring<Plan> ring{ptx::shared_address(memory)};
  if (threadIdx.x == 0) {
    for (int s = 0; s < Plan::kStages; ++s) {
      ptx::mbarrier_init(ring.full(s), 1);
      ptx::mbarrier_init(ring.empty(s), 4 * consumers * cluster);
    }
    ptx::fence_mbarrier_init();
  }
  if (cluster > 1) {
    ptx::cluster_sync();
  } else {
    __syncthreads();
  }
  if (threadIdx.x / 128 == consumers) {
    ptx::lower_registers<Plan::kProducerRegisters>();  // by the whole warpgroup
    if (threadIdx.x % 128 == 0) Producer<Plan>(call, ring.shared).run();
    __syncwarp();
  } else {
    ptx::raise_registers<Plan::kRegisters>();
    Consumer<Plan>(call, memory).run();
  }
  // No CTA leaves while the other may still write to its shared memory.
  if (cluster > 1) ptx::cluster_sync();
#endif
}

template <class Plan>
int launch_plan(RowsCall& call, int ctas, void* stream) {
  call.kept = call.skip && call.steps >= Plan::kStages ? Plan::kStages : 0;
  const Grid grid{dim3(ctas), dim3(128 * (call.grid.consumers + 1)), call.grid.cluster, Plan::kSharedBytes};
  return launch(rows_kernel<Plan>, grid, stream, call);
}

template <class T, int H, bool kBackward>
int launch_rows(RowsCall& call, bool float_input, int ctas, void* stream) {
  if (float_input) return launch_plan<RowsPlan<T, H, kBackward, true>>(call, ctas, stream);
  if constexpr (H == kThreeConsumersH) {
    if (call.grid.consumers == 3) return launch_plan<RowsPlan<T, H, kBackward, false, 3>>(call, ctas, stream);
  }
  return launch_plan<RowsPlan<T, H, kBackward, false>>(call, ctas, stream);
}

template <class T, int H>
int launch_rows_forward(RowsCall call, bool float_input, int ctas, void* stream) {
  return launch_rows<T, H, false>(call, float_input, ctas, stream);
}

template <class T, int H>
int launch_rows_backward(RowsCall call, bool float_input, int ctas, void* stream) {
  return launch_rows<T, H, true>(call, float_input, ctas, stream);
}

}  // namespace aim_fast::cuda::hopper
