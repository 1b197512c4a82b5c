// A thread's part of a tile product in fp32, on the plain multiply-add units.
//
// The threads are groups. Each group has the whole tile, kPerM x kPerN elements a thread, and a share of the depth of
// every step, in fours, so that few tiles still have warps enough.
#pragma once

#include "cuda/tiles/operands.h"

namespace aim_fast::cuda::tiles {

template <int kRows, int kColumns, int kRowsOfThread, int kColumnsOfThread, int kStepDepth, int kSlots>
struct ThreadTiling {
  static constexpr int kTileM = kRows, kTileN = kColumns, kPerM = kRowsOfThread, kPerN = kColumnsOfThread;
  static constexpr int kDepth = kStepDepth;  // of a step
  static constexpr int kStages = kSlots;
  static constexpr int kThreadsM = kTileM / kPerM, kThreadsN = kTileN / kPerN;
  static constexpr int kGroups = kThreads / (kThreadsM * kThreadsN);
  static_assert(kGroups * kThreadsM * kThreadsN == kThreads && kDepth % (kGroups * kVector<float>) == 0);
};

template <class Tiling_, Lines kLinesA, Lines kLinesB>
class MultiplyAdd {
  // Eight neighbouring lines along the depth are read at once: a vector more for each puts them on different banks.
  template <Lines kLines, int kTile>
  using SideOf = Side<float, kLines, kTile, Tiling_::kDepth, kLines == Lines::kAlongDepth ? kFour : 0>;

 public:
  using T = float;
  using Tiling = Tiling_;
  using A = SideOf<kLinesA, Tiling::kTileM>;
  using B = SideOf<kLinesB, Tiling::kTileN>;

  // Adds the product of a slot's operands.
  AIM_DEVICE void add(const float* a, const float* b) {
#pragma unroll
    for (int k = 0; k < Tiling::kDepth; k += Tiling::kGroups * kFour) {
      float of_a[Tiling::kPerM][kFour], of_b[Tiling::kPerN][kFour];
      load<A>(of_a, a, thread_m(), Tiling::kThreadsM, k + group() * kFour);
      load<B>(of_b, b, thread_n(), Tiling::kThreadsN, k + group() * kFour);
#pragma unroll
      for (int i = 0; i < kFour; ++i) {
#pragma unroll
        for (int m = 0; m < Tiling::kPerM; ++m) {
#pragma unroll
          for (int n = 0; n < Tiling::kPerN; ++n) sums_[m][n] = fmaf(of_a[m][i], of_b[n][i], sums_[m][n]);
        }
      }
    }
  }

  // Leaves the sums in the group's tile [kTileM, kTileN] of `shared`, with so many floats to a row.
  AIM_DEVICE void leave(float* shared, int pitch) const {
#pragma unroll
    for (int m = 0; m < Tiling::kPerM; ++m) {
      const int row = group() * Tiling::kTileM + index<A, Tiling::kPerM>(thread_m(), Tiling::kThreadsM, m);
#pragma unroll
      for (int n = 0; n < Tiling::kPerN; ++n) {
        shared[row * pitch + index<B, Tiling::kPerN>(thread_n(), Tiling::kThreadsN, n)] = sums_[m][n];
      }
    }
  }

 private:
  static constexpr int kOfGroup = Tiling::kThreadsM * Tiling::kThreadsN;
  AIM_DEVICE static int group() { return threadIdx.x / kOfGroup; }
  AIM_DEVICE static int thread_m() { return threadIdx.x % kOfGroup / Tiling::kThreadsN; }
  AIM_DEVICE static int thread_n() { return threadIdx.x % kOfGroup % Tiling::kThreadsN; }

  // Which of the tile's rows or columns is number i of thread `thread`, of `threads` that share them out.
  template <class S, int kPer>
  AIM_DEVICE static int index(int thread, int threads, int i) {
    return S::kAlong ? thread + i * threads : thread * kPer + i;
  }

  // values [kPer, 4]: the thread's, at four places in the depth.
  template <class S, int kPer>
  AIM_DEVICE static void load(float (&values)[kPer][kFour], const float* slot, int thread, int threads, int depth) {
    if constexpr (S::kAlong) {
#pragma unroll
      for (int i = 0; i < kPer; ++i) {
        const float4 four = *reinterpret_cast<const float4*>(slot + (thread + i * threads) * S::kPitch + depth);
        values[i][0] = four.x, values[i][1] = four.y, values[i][2] = four.z, values[i][3] = four.w;
      }
    } else {
#pragma unroll
      for (int k = 0; k < kFour; ++k) {
        const float* from = slot + (depth + k) * S::kPitch + thread * kPer;
        if constexpr (kPer % kFour == 0) {
#pragma unroll
          for (int i = 0; i < kPer; i += kFour) {
            const float4 four = *reinterpret_cast<const float4*>(from + i);
            values[i][k] = four.x, values[i + 1][k] = four.y, values[i + 2][k] = four.z, values[i + 3][k] = four.w;
          }
        } else {
#pragma unroll
          for (int i = 0; i < kPer; ++i) values[i][k] = from[i];
        }
      }
    }
  }

  float sums_[Tiling::kPerM][Tiling::kPerN] = {};
};

}  // namespace aim_fast::cuda::tiles
