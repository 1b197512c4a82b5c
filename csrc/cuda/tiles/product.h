// One tile of a product C [M, N] = A B, by a CTA: in fp32 (multiply_add.h), or in 16 bits with sums in fp32
// (tensor_cores.h).
//
//     Tiling    256 threads in groups. Each group has the whole tile and a share of the depth of every step
//     Flow      a ring of kStages slots that cp.async fills ahead, kDepth a step, one barrier a step; zeros beyond the
//               matrices
//     Memory    slot = lines of A | lines of B; at the end the groups' sums, in the place of the ring
//     Order     of every sum: that of the depth within a group, then the groups. The same bits from run to run
#pragma once

#include <algorithm>

#include "cuda/tiles/multiply_add.h"
#include "cuda/tiles/tensor_cores.h"

namespace aim_fast::cuda::tiles {

struct Nothing {};  // that an epilogue loads

// Of a multiprocessor, that registers must leave room for.
template <class T>
constexpr int kCtas = std::is_same_v<T, float> ? 2 : 3;

// kFollows: an early launch, of whose operands A alone comes from the launch before it.
template <class T, class Tiling, Lines kLinesA, Lines kLinesB, bool kFollows = false>
class Product {
  using Unit = std::conditional_t<std::is_same_v<T, float>, MultiplyAdd<Tiling, kLinesA, kLinesB>,
                                  TensorCores<T, Tiling, kLinesA, kLinesB>>;
  using A = typename Unit::A;
  using B = typename Unit::B;
  static constexpr int kStages = Tiling::kStages;
  static constexpr int kSlot = A::kElements + B::kElements;
  static constexpr int kPitch = Tiling::kTileN + kFour;  // of the groups' sums

 public:
  static constexpr size_t kShared =
      std::max(kStages * kSlot * sizeof(T), Tiling::kGroups* Tiling::kTileM * kPitch * sizeof(float));

  // Forms the tile of C [M, N] that begins at (first_m, first_n) and passes its elements (m, n) to (m, n + 3), as c
  // [4], to the epilogue: to epilogue(m, n, c, columns, elements), with what it loads itself before by columns(n) and
  // elements(m, n). All threads of the CTA.
  template <class Epilogue>
  AIM_DEVICE static void run(uint8_t* memory, const Operand& a, const Operand& b, int64_t first_m, int64_t first_n,
                             int64_t M, int64_t N, Depth depth, const Epilogue& epilogue) {
    const int steps = static_cast<int>((depth.end - depth.begin + Tiling::kDepth - 1) / Tiling::kDepth);
    T* const slots = reinterpret_cast<T*>(memory);
    const typename A::Source from_a(a, first_m);
    const typename B::Source from_b(b, first_n);
    const auto begin_of = [&](int step) { return depth.begin + int64_t{step} * Tiling::kDepth; };
    const auto fill_a = [&](int step, int at) {
      if (step < steps) from_a.fill(slots + at * kSlot, begin_of(step), depth.end);
    };
    const auto fill_b = [&](int step, int at) {
      if (step < steps) from_b.fill(slots + at * kSlot + A::kElements, begin_of(step), depth.end);
    };
    if constexpr (kFollows) {
#pragma unroll 1
      for (int step = 0; step < kStages - 1; ++step) fill_b(step, step);
      ptx::wait_for_launch_before();
      ptx::allow_next_launch();
    }
#pragma unroll 1
    for (int step = 0; step < kStages - 1; ++step) {
      fill_a(step, step);
      if constexpr (!kFollows) fill_b(step, step);
      ptx::cp_async_commit();
    }

    Unit unit;
    int at = 0, free = kStages - 1;  // of the slots
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      ptx::cp_async_wait<kStages - 2>();
      __syncthreads();
      fill_a(step + kStages - 1, free);  // into the slot that was read before the barrier
      fill_b(step + kStages - 1, free);
      ptx::cp_async_commit();
      unit.add(slots + at * kSlot, slots + at * kSlot + A::kElements);
      free = at;
      at = at + 1 == kStages ? 0 : at + 1;
    }

    // A thread has the same four columns in all its rows.
    const int row = threadIdx.x / kFoursOfRow, column = threadIdx.x % kFoursOfRow * kFour;
    const int64_t m = first_m + row, n = first_n + column;
    const int rows =
        row < Tiling::kTileM && n < N ? static_cast<int>(std::min<int64_t>(M - first_m, Tiling::kTileM)) : 0;
    decltype(epilogue.columns(n)) columns;
    decltype(epilogue.elements(m, n)) elements[kBatch];
    const auto load = [&](int first) {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int further = (first + i) * kRowsAtOnce;
        if (row + further < rows) elements[i] = epilogue.elements(m + further, n);
      }
    };
    if (rows > 0) columns = epilogue.columns(n);
    load(0);
    ptx::cp_async_wait<0>();
    __syncthreads();
    float* sums = reinterpret_cast<float*>(memory);
    unit.leave(sums, kPitch);
    __syncthreads();
#pragma unroll
    for (int first = 0; first < kTurns; first += kBatch) {
      if (first > 0) load(first);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int further = (first + i) * kRowsAtOnce;
        if (row + further >= rows) break;
        float c[kFour] = {};
#pragma unroll
        for (int g = 0; g < Tiling::kGroups; ++g) {
          const float* from = sums + (g * Tiling::kTileM + row + further) * kPitch + column;
          const float4 four = *reinterpret_cast<const float4*>(from);
          c[0] += four.x, c[1] += four.y, c[2] += four.z, c[3] += four.w;
        }
        epilogue(m + further, n, c, columns, elements[i]);
      }
    }
  }

 private:
  static constexpr int kFoursOfRow = Tiling::kTileN / kFour, kRowsAtOnce = kThreads / kFoursOfRow;
  static constexpr int kTurns = std::max(1, Tiling::kTileM / kRowsAtOnce);
  static constexpr int kBatch =
      std::min(kTurns, std::is_same_v<T, float> ? 4 : 2);  // whose loads are under way at once
};

}  // namespace aim_fast::cuda::tiles
