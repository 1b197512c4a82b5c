// What the host and the row kernels on sm_90a share: the run-time half of a plan, and a call.
#pragma once

#include "cuda/rows.h"
#include "cuda/vectors.h"

namespace aim_fast::cuda::hopper {

// The pieces that everything is cut into.
constexpr int kColumns = 64;                  // of D or H in a step: 128 bytes of T, the swizzle's span
constexpr int kGroupRows = 64;                // of a consumer warpgroup: wgmma's M
constexpr int kWarpRows = 16;                 // of them a warp's
constexpr int kTileBytes = kGroupRows * 128;  // what one box of TMA lays down for a consumer
constexpr int kBlockBytes = kWarpRows * 128;  // a warp's part of it

// Work is dealt out in items: a block of rows with all of the second product's columns or, where the last round would
// leave multiprocessors idle, with a part of them.
struct RowsGrid {
  int consumers;  // of 64 rows, in a CTA: 1 to 3
  int cluster;    // CTAs that share the weights' tiles: 1 or 2
  int whole;      // blocks, the first ones, that are an item each
  int parts;      // items of each of the other blocks, each of which forms z again
};

struct RowsCall {
  // Forward: x, y, z written. K1: dy, dx, z read. w1 and w2 come in halves of a step, one a CTA of a cluster of two.
  ptx::TensorMap input, w1, w2, out, z, dz, h, rounded;
  Array b1, b2, scale;  // scale: [1] or, wide, [D]
  DeviceRows row_scale, residual, out_rows;
  bool wide_scale, skip;
  float alpha;
  Activation activation;
  bool second;                   // y or dx is wanted
  bool out_by_map;               // TMA stores it; else it is written through out_rows
  bool keep_z, keep_dz, keep_h;  // written besides
  bool keep_rounded;             // and so is an input in fp32, as it is multiplied
  uint32_t M;
  int steps;  // D / 64
  int items;  // of a cluster
  int kept;   // input tiles that the second product of a whole block finds still in the ring
  RowsGrid grid;
};

// Whether the results are of T and leave by TMA, b2 and a residual are of T too, and the scale is no vector.
template <class T>
constexpr bool is_plain(const RowsCall& call) {
  return call.out_by_map && !call.wide_scale && (!call.residual || call.residual.dtype == kDtype<T>) &&
         (!call.b2 || call.b2.dtype == kDtype<T>);
}

// Instantiated under instances/ for both types and every H. ctas: a multiple of the cluster; returns a cudaError_t.
template <class T, int H>
int launch_rows_forward(RowsCall call, bool float_input, int ctas, void* stream);
template <class T, int H>
int launch_rows_backward(RowsCall call, bool float_input, int ctas, void* stream);

}  // namespace aim_fast::cuda::hopper
