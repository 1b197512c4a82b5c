// The forward for sm_80 and up.
//
//     y = alpha * scale * row_scale * (act(z) w2^T + b2)  [+ x] [+ residual],   z = x w1^T + b1
//
//     Shapes    x, y, residual [M, D] by rows of any strides; w1 [H, D]; w2 [D, H]; z [M, H]
//     Tiling    rows_tile.h; a CTA owns up to 128 rows, or a part of the columns of their y
//     Results   y, z, and x in T where it is fp32; z and the last may be absent
//     Rounding  x to T if it is fp32, act(z) to T, z where it is stored, y
#pragma once

#include "cuda/activation.h"
#include "cuda/ampere/rows_tile.h"
#include "cuda/launch.h"

namespace aim_fast::cuda::ampere {

// The hidden block in fragments A from the sums of the first product; z is stored on the way.
template <class T, int kHidden>
AIM_DEVICE void make_hidden(const RowsTile<T, kHidden, false>& tile, const float (&sums)[kHidden / 8][4],
                            uint8_t* staging, uint32_t (&hidden)[kHidden / 16][4]) {
  const RowsCall& call = tile.call;
  const bool stores_z = call.z && tile.is_first_part();
#pragma unroll
  for (int group = 0; group < kHidden / kGroup; ++group) {
    uint32_t fragments[2][4] = {};
    const int column = group * kGroup;
    if (column < call.H) {
      float z[16];
#pragma unroll
      for (int j = 0; j < kGroup / 8; ++j) {
        const int own = column + j * 8 + tile.lane % 4 * 2;
        float2 bias = {0.f, 0.f};
        if (call.b1 && own < call.H) bias = load_floats(call.b1.data, call.b1.dtype, own);
        // Beyond H the sums are NaN where x has inf, and NaN times a weight of 0 would spoil y; act(0) is 0.
#pragma unroll
        for (int i = 0; i < 4; ++i)
          z[j * 4 + i] = own < call.H ? sums[group * 4 + j][i] + (i % 2 ? bias.y : bias.x) : 0.f;
      }
      if (stores_z) {
        tile.to_fragments(z, fragments);
        tile.store_hidden(call.z, fragments, staging, column);
      }
      activate<T>(call.activation, z);
      tile.to_fragments(z, fragments);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) hidden[group * 2 + i / 4][i % 4] = fragments[i / 4][i % 4];
  }
}

template <class T, int kHidden>
__global__ void __launch_bounds__(kMaxThreads, kRowsCtas<kHidden>)
    forward_kernel(const AIM_GRID_CONSTANT RowsCall call) {
  AIM_DYNAMIC_SHARED(shared);
  RowsTile<T, kHidden, false> tile(call, shared);
  tile.begin(true, true, false);

  const bool rounds = call.rounded && tile.is_first_part();
  float sums[kHidden / 8][4] = {};
  uint8_t* slot = nullptr;
#pragma unroll 1
  for (int step = 0; step < tile.input_steps; ++step) {
    slot = tile.template enter<Step::kInput>();
    if (rounds) tile.store_rounded(slot, step * kDepth);
    tile.multiply_input(sums, slot);
  }
  // The last step's input is what the hidden block is turned round in.
  __syncthreads();
  uint32_t hidden[kHidden / 16][4];
  make_hidden(tile, sums, tile.staging(slot), hidden);
  tile.multiply_hidden(hidden);
}

template <class T, int kHidden>
int launch_forward(const RowsCall& call, const Grid& grid, void* stream) {
  return launch(forward_kernel<T, kHidden>, grid, stream, call);
}

}  // namespace aim_fast::cuda::ampere
