// One tile of a product C [M, N] = A B in fp32, by a CTA, on the plain multiply-add units.
//
//     Tiling    256 threads in groups. Each group has the whole tile, kPerM x kPerN elements a thread, and a share of
//               the depth of every step, in fours, so that few tiles still have warps enough
//     Flow      a ring of kStages slots that cp.async fills ahead, kDepth a step, one barrier a step; zeros beyond the
//               matrices
//     Memory    slot = lines of A | lines of B; at the end the groups' sums, in the place of the ring
//     Order     of every sum: that of the depth within a group, then the groups. The same bits from run to run
#pragma once

#include <algorithm>

#include "cuda/ptx.h"
#include "cuda/rows.h"

namespace aim_fast::cuda::simt {

constexpr int kThreads = 256;
constexpr int kCtas = 2;    // of a multiprocessor, that registers must leave room for
constexpr int kVector = 4;  // floats in 16 bytes

// What a line of an operand holds, as it lies in memory: all of the depth for one row of A or column of B; or for one
// place in the depth all rows of A or columns of B.
enum class Lines { kAlongDepth, kAcrossDepth };

// fp32 lines of unit stride, on 16 bytes each, of a length that is a multiple of 4.
struct Operand {
  DeviceRows lines;
  int64_t count, length;
};

// The part of the depth that a product sums over.
struct Depth {
  int64_t begin, end;
};

template <int kRows, int kColumns, int kRowsOfThread, int kColumnsOfThread, int kStepDepth, int kSlots>
struct Tiling {
  static constexpr int kTileM = kRows, kTileN = kColumns, kPerM = kRowsOfThread, kPerN = kColumnsOfThread;
  static constexpr int kDepth = kStepDepth;  // of a step
  static constexpr int kStages = kSlots;
  static constexpr int kThreadsM = kTileM / kPerM, kThreadsN = kTileN / kPerN;
  static constexpr int kGroups = kThreads / (kThreadsM * kThreadsN);
  static_assert(kGroups * kThreadsM * kThreadsN == kThreads && kDepth % (kGroups * kVector) == 0);
};

// One operand's part of a slot.
template <Lines kLines, int kTile, int kDepth>
struct Side {
  static constexpr bool kAlong = kLines == Lines::kAlongDepth;
  static constexpr int kCount = kAlong ? kTile : kDepth, kLength = kAlong ? kDepth : kTile;
  // Eight neighbouring lines along the depth are read at once: a vector more for each puts them on different banks.
  static constexpr int kPitch = kLength + (kAlong ? kVector : 0);
  static constexpr int kFloats = kCount * kPitch;
  static constexpr int kVectorsOfLine = kLength / kVector, kVectors = kCount * kVectorsOfLine / kThreads;
  static_assert(kVectors * kThreads == kCount * kVectorsOfLine);

  // Issues the loads of a step, for the rows of A or columns of B from `first` on.
  AIM_DEVICE static void fill(float* slot, const Operand& operand, int64_t first, int64_t depth, int64_t end) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int at = static_cast<int>(threadIdx.x) + i * kThreads;
      const int line = at / kVectorsOfLine, place = at % kVectorsOfLine * kVector;
      const int64_t from_line = (kAlong ? first : depth) + line, from_place = (kAlong ? depth : first) + place;
      const bool inside =
          kAlong ? from_line < operand.count && from_place < end : from_line < end && from_place < operand.length;
      const char* from = operand.lines.row(inside ? static_cast<uint32_t>(from_line) : 0);
      ptx::cp_async_16(slot + line * kPitch + place, from + (inside ? from_place * 4 : 0), inside);
    }
  }

  // Which of the tile's rows or columns is number i of thread `thread`, of `threads` that share them out.
  template <int kPer>
  AIM_DEVICE static int index(int thread, int threads, int i) {
    return kAlong ? thread + i * threads : thread * kPer + i;
  }

  // values [kPer, 4]: the thread's, at four places in the depth.
  template <int kPer>
  AIM_DEVICE static void load(float (&values)[kPer][kVector], const float* slot, int thread, int threads, int depth) {
    if constexpr (kAlong) {
#pragma unroll
      for (int i = 0; i < kPer; ++i) {
        const float4 four = *reinterpret_cast<const float4*>(slot + (thread + i * threads) * kPitch + depth);
        values[i][0] = four.x, values[i][1] = four.y, values[i][2] = four.z, values[i][3] = four.w;
      }
    } else {
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        const float* from = slot + (depth + k) * kPitch + thread * kPer;
        if constexpr (kPer % kVector == 0) {
#pragma unroll
          for (int i = 0; i < kPer; i += kVector) {
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
};

template <class T, Lines kLinesA, Lines kLinesB>
struct Product {
  using A = Side<kLinesA, T::kTileM, T::kDepth>;
  using B = Side<kLinesB, T::kTileN, T::kDepth>;
  static constexpr int kSlotFloats = A::kFloats + B::kFloats;
  static constexpr int kPitch = T::kTileN + kVector;  // of the groups' sums
  static constexpr int kStages = T::kStages;
  static constexpr size_t kShared = 4 * std::max(kStages * kSlotFloats, T::kGroups* T::kTileM* kPitch);

  // Calls epilogue(m, n, float (&c)[4]) for the elements (m, n) to (m, n + 3) of C within [M, N], from (first_m,
  // first_n) on. All threads of the CTA.
  template <class Epilogue>
  AIM_DEVICE static void run(float* shared, const Operand& a, const Operand& b, int64_t first_m, int64_t first_n,
                             int64_t M, int64_t N, Depth depth, Epilogue&& epilogue) {
    const int thread = threadIdx.x % (T::kThreadsM * T::kThreadsN);
    const int group = threadIdx.x / (T::kThreadsM * T::kThreadsN);
    const int thread_m = thread / T::kThreadsN, thread_n = thread % T::kThreadsN;
    const int steps = static_cast<int>((depth.end - depth.begin + T::kDepth - 1) / T::kDepth);
    const auto fill = [&](int step) {
      float* slot = shared + step % kStages * kSlotFloats;
      const int64_t from = depth.begin + int64_t{step} * T::kDepth;
      if (step < steps) {
        A::fill(slot, a, first_m, from, depth.end);
        B::fill(slot + A::kFloats, b, first_n, from, depth.end);
      }
      ptx::cp_async_commit();
    };
    for (int step = 0; step < kStages - 1; ++step) fill(step);

    float sums[T::kPerM][T::kPerN] = {};
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      ptx::cp_async_wait<kStages - 2>();
      __syncthreads();
      fill(step + kStages - 1);  // into the slot that was read before the barrier
      const float* slot = shared + step % kStages * kSlotFloats;
#pragma unroll
      for (int k = 0; k < T::kDepth; k += T::kGroups * kVector) {
        float of_a[T::kPerM][kVector], of_b[T::kPerN][kVector];
        A::load(of_a, slot, thread_m, T::kThreadsM, k + group * kVector);
        B::load(of_b, slot + A::kFloats, thread_n, T::kThreadsN, k + group * kVector);
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
#pragma unroll
          for (int m = 0; m < T::kPerM; ++m) {
#pragma unroll
            for (int n = 0; n < T::kPerN; ++n) sums[m][n] = fmaf(of_a[m][i], of_b[n][i], sums[m][n]);
          }
        }
      }
    }

    ptx::cp_async_wait<0>();
    __syncthreads();
#pragma unroll
    for (int m = 0; m < T::kPerM; ++m) {
      const int row = group * T::kTileM + A::template index<T::kPerM>(thread_m, T::kThreadsM, m);
#pragma unroll
      for (int n = 0; n < T::kPerN; ++n) {
        shared[row * kPitch + B::template index<T::kPerN>(thread_n, T::kThreadsN, n)] = sums[m][n];
      }
    }
    __syncthreads();
    for (int at = threadIdx.x; at < T::kTileM * T::kTileN / kVector; at += kThreads) {
      const int row = at / (T::kTileN / kVector), column = at % (T::kTileN / kVector) * kVector;
      if (first_m + row >= M || first_n + column >= N) continue;
      float c[kVector] = {};
#pragma unroll
      for (int g = 0; g < T::kGroups; ++g) {
        const float4 four = *reinterpret_cast<const float4*>(shared + (g * T::kTileM + row) * kPitch + column);
        c[0] += four.x, c[1] += four.y, c[2] += four.z, c[3] += four.w;
      }
      epilogue(first_m + row, first_n + column, c);
    }
  }
};

}  // namespace aim_fast::cuda::simt
