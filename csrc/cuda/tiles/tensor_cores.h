// A warp's part of a tile product in 16 bits, on the tensor cores by mma.sync, with sums in fp32.
//
// The warps are groups. Each group has the whole tile, kWarpM x kWarpN elements a warp, and a share of the depth of
// every step, in sixteens, so that few tiles still have warps enough.
#pragma once

#include "cuda/tiles/operands.h"

namespace aim_fast::cuda::tiles {

template <int kRows, int kColumns, int kRowsOfWarp, int kColumnsOfWarp, int kStepDepth, int kSlots>
struct WarpTiling {
  static constexpr int kTileM = kRows, kTileN = kColumns, kWarpM = kRowsOfWarp, kWarpN = kColumnsOfWarp;
  static constexpr int kDepth = kStepDepth;  // of a step
  static constexpr int kStages = kSlots;
  static constexpr int kWarpsN = kTileN / kWarpN, kWarpsOfGroup = kTileM / kWarpM * kWarpsN;
  static constexpr int kGroups = kThreads / 32 / kWarpsOfGroup;
  static_assert(kGroups * kWarpsOfGroup * 32 == kThreads && kDepth % (kGroups * 16) == 0);
  static_assert(kWarpM % 16 == 0 && kWarpN % 16 == 0);
};

template <class T_, class Tiling_, Lines kLinesA, Lines kLinesB>
class TensorCores {
  // The eight rows of a matrix of ldmatrix lie on different banks, as a pitch is an odd number of vectors.
  template <Lines kLines, int kTile>
  using SideOf = Side<T_, kLines, kTile, Tiling_::kDepth, kVector<T_>>;

 public:
  using T = T_;
  using Tiling = Tiling_;
  using A = SideOf<kLinesA, Tiling::kTileM>;
  using B = SideOf<kLinesB, Tiling::kTileN>;

  // Adds the product of a slot's operands.
  AIM_DEVICE void add(const T* a, const T* b) {
#pragma unroll
    for (int k = 0; k < Tiling::kDepth; k += Tiling::kGroups * 16) {
      const int depth = k + group() * 16;
      uint32_t of_a[Tiling::kWarpM / 16][4], of_b[Tiling::kWarpN / 16][4];
#pragma unroll
      for (int i = 0; i < Tiling::kWarpM / 16; ++i) load_a(of_a[i], a, first_m() + 16 * i, depth);
#pragma unroll
      for (int j = 0; j < Tiling::kWarpN / 16; ++j) load_b(of_b[j], b, first_n() + 16 * j, depth);
#pragma unroll
      for (int i = 0; i < Tiling::kWarpM / 16; ++i) {
#pragma unroll
        for (int j = 0; j < Tiling::kWarpN / 8; ++j) {
          ptx::mma<T>(sums_[i][j], of_a[i], of_b[j / 2][j % 2 * 2], of_b[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  }

  // Leaves the sums in the group's tile [kTileM, kTileN] of `shared`, with so many floats to a row.
  AIM_DEVICE void leave(float* shared, int pitch) const {
    float* to = shared + (group() * Tiling::kTileM + first_m() + lane() / 4) * pitch + first_n() + lane() % 4 * 2;
#pragma unroll
    for (int i = 0; i < Tiling::kWarpM / 16; ++i) {
#pragma unroll
      for (int j = 0; j < Tiling::kWarpN / 8; ++j) {
        const float (&sum)[4] = sums_[i][j];
        ptx::store_float2(to + 16 * i * pitch + 8 * j, sum[0], sum[1]);
        ptx::store_float2(to + (16 * i + 8) * pitch + 8 * j, sum[2], sum[3]);
      }
    }
  }

 private:
  AIM_DEVICE static int lane() { return threadIdx.x % 32; }
  AIM_DEVICE static int group() { return threadIdx.x / 32 / Tiling::kWarpsOfGroup; }
  AIM_DEVICE static int warp() { return threadIdx.x / 32 % Tiling::kWarpsOfGroup; }
  AIM_DEVICE static int first_m() { return warp() / Tiling::kWarpsN * Tiling::kWarpM; }
  AIM_DEVICE static int first_n() { return warp() % Tiling::kWarpsN * Tiling::kWarpN; }

  // The fragment [16, 16] of A from row m and this depth on: its matrices are (rows 0..7, depth 0..7), (8..15, 0..7),
  // (0..7, 8..15), (8..15, 8..15).
  AIM_DEVICE static void load_a(uint32_t (&r)[4], const T* slot, int m, int depth) {
    if constexpr (A::kAlong) {
      ptx::ldmatrix_x4(r, slot + (m + lane() % 16) * A::kPitch + depth + lane() / 16 * 8);
    } else {
      ptx::ldmatrix_x4_trans(r, slot + (depth + lane() % 8 + lane() / 16 * 8) * A::kPitch + m + lane() / 8 % 2 * 8);
    }
  }

  // Two fragments [16, 8] of B from column n and this depth on: (depth 0..7, columns 0..7), (8..15, 0..7), (0..7,
  // 8..15), (8..15, 8..15).
  AIM_DEVICE static void load_b(uint32_t (&r)[4], const T* slot, int n, int depth) {
    if constexpr (B::kAlong) {
      ptx::ldmatrix_x4(r, slot + (n + lane() % 8 + lane() / 16 * 8) * B::kPitch + depth + lane() / 8 % 2 * 8);
    } else {
      ptx::ldmatrix_x4_trans(r, slot + (depth + lane() % 16) * B::kPitch + n + lane() / 16 * 8);
    }
  }

  float sums_[Tiling::kWarpM / 16][Tiling::kWarpN / 8][4] = {};
};

}  // namespace aim_fast::cuda::tiles
