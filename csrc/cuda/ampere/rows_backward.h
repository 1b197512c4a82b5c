// K1 of the backward for sm_80 and up.
//
//     dh = alpha * scale * row_scale * (dy w2),   dz = dh * act'(z),   dx = dz w1  [+ dy]
//
//     Shapes    dy, dx [M, D] by rows of any strides; w2 [D, H] with a wide scale in it; w1 [H, D]; z, dz, h [M, H]
//     Tiling    rows_tile.h; a CTA owns up to 128 rows, or a part of the columns of their dx
//     Results   dx, dz, h = row_scale * act(z), and dy in T where it is fp32; each may be absent
//     Rounding  dy to T if it is fp32, dz to T before the second product, h, dx
#pragma once

#include "cuda/activation.h"
#include "cuda/ampere/rows_tile.h"
#include "cuda/launch.h"

namespace aim_fast::cuda::ampere {

// dz in fragments A from the sums of the first product and from z, a step a group of columns; dz and h are stored.
template <class T, int kHidden>
AIM_DEVICE void make_hidden(RowsTile<T, kHidden, true>& tile, const float (&sums)[kHidden / 8][4],
                            uint32_t (&hidden)[kHidden / 16][4]) {
  const RowsCall& call = tile.call;
  float row_scale[2], factor[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    row_scale[half] = tile.row_of_half(half).scale;
    factor[half] = tile.factor_of_all() * row_scale[half];
  }
#pragma unroll
  for (int group = 0; group < kHidden / kGroup; ++group) {
    uint32_t fragments[2][4] = {};
    const int column = group * kGroup;
    if (group < tile.z_steps) {
      uint8_t* slot = tile.template enter<Step::kZ>();
      float z[16], dh[16];
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        uint32_t pairs[4];
        load_rows_fragment<kGroup * 2>(pairs, slot + tile.input_bytes, tile.warp * kWarpRows, k * 16);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          // Pairs 0 and 1 of a fragment are rows g and g + 8 of its first 8 columns, 2 and 3 of the others.
          const int at = k * 8 + i / 2 * 4 + i % 2 * 2;
          z[at] = ptx::low<T>(pairs[i]);
          z[at + 1] = ptx::high<T>(pairs[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < 16; ++i) dh[i] = sums[group * 4 + i / 4][i % 4] * factor[i % 4 / 2];
      activate_backward<T>(call.activation, z, dh);
      if (call.h && tile.is_first_part()) {
#pragma unroll
        for (int i = 0; i < 16; ++i) z[i] *= row_scale[i % 4 / 2];
        tile.to_fragments(z, fragments);
        tile.store_hidden(call.h, fragments, tile.staging(slot), column);
      }
      tile.to_fragments(dh, fragments);
      if (call.dz && tile.is_first_part()) tile.store_hidden(call.dz, fragments, tile.staging(slot), column);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) hidden[group * 2 + i / 4][i % 4] = fragments[i / 4][i % 4];
  }
}

template <class T, int kHidden>
__global__ void __launch_bounds__(kMaxThreads, kRowsCtas<kHidden>)
    backward_rows_kernel(const AIM_GRID_CONSTANT RowsCall call) {
  AIM_DYNAMIC_SHARED(shared);
  RowsTile<T, kHidden, true> tile(call, shared);
  const bool needs_dz = call.dz || call.output, rounds = call.rounded && tile.is_first_part();
  tile.begin(needs_dz || rounds, needs_dz, needs_dz || call.h);

  float sums[kHidden / 8][4] = {};
#pragma unroll 1
  for (int step = 0; step < tile.input_steps; ++step) {
    uint8_t* slot = tile.template enter<Step::kInput>();
    if (rounds) tile.store_rounded(slot, step * kDepth);
    if (needs_dz) tile.multiply_input(sums, slot);
  }
  uint32_t hidden[kHidden / 16][4];
  make_hidden(tile, sums, hidden);
  tile.multiply_hidden(hidden);
}

template <class T, int kHidden>
int launch_backward_rows(const RowsCall& call, const Grid& grid, void* stream) {
  return launch(backward_rows_kernel<T, kHidden>, grid, stream, call);
}

}  // namespace aim_fast::cuda::ampere
