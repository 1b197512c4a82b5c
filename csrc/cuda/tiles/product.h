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

constexpr int kFour = 4;  // neighbours in a row of C, which an epilogue takes at once

// What multiplies T.
template <class T, class Tiling, Lines kLinesA, Lines kLinesB>
struct UnitOf {
  using Type = TensorCores<T, Tiling, kLinesA, kLinesB>;
};
template <class Tiling, Lines kLinesA, Lines kLinesB>
struct UnitOf<float, Tiling, kLinesA, kLinesB> {
  using Type = MultiplyAdd<Tiling, kLinesA, kLinesB>;
};

template <class T, class Tiling, Lines kLinesA, Lines kLinesB>
struct Product {
  using Unit = typename UnitOf<T, Tiling, kLinesA, kLinesB>::Type;
  using A = typename Unit::A;
  using B = typename Unit::B;
  static constexpr int kStages = Tiling::kStages;
  static constexpr int kSlot = A::kElements + B::kElements;
  static constexpr int kPitch = Tiling::kTileN + kFour;  // of the groups' sums
  static constexpr size_t kShared =
      std::max(kStages * kSlot * sizeof(T), Tiling::kGroups* Tiling::kTileM * kPitch * sizeof(float));

  // Calls epilogue(m, n, float (&c)[4]) for the elements (m, n) to (m, n + 3) of C within [M, N], from (first_m,
  // first_n) on. All threads of the CTA.
  template <class Epilogue>
  AIM_DEVICE static void run(uint8_t* memory, const Operand& a, const Operand& b, int64_t first_m, int64_t first_n,
                             int64_t M, int64_t N, Depth depth, Epilogue&& epilogue) {
    const int steps = static_cast<int>((depth.end - depth.begin + Tiling::kDepth - 1) / Tiling::kDepth);
    const auto slot_of = [&](int step) { return reinterpret_cast<T*>(memory) + step % kStages * kSlot; };
    const auto fill = [&](int step) {
      const int64_t from = depth.begin + int64_t{step} * Tiling::kDepth;
      if (step < steps) {
        A::fill(slot_of(step), a, first_m, from, depth.end);
        B::fill(slot_of(step) + A::kElements, b, first_n, from, depth.end);
      }
      ptx::cp_async_commit();
    };
    for (int step = 0; step < kStages - 1; ++step) fill(step);

    Unit unit;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      ptx::cp_async_wait<kStages - 2>();
      __syncthreads();
      fill(step + kStages - 1);  // into the slot that was read before the barrier
      unit.add(slot_of(step), slot_of(step) + A::kElements);
    }

    ptx::cp_async_wait<0>();
    __syncthreads();
    float* sums = reinterpret_cast<float*>(memory);
    unit.leave(sums, kPitch);
    __syncthreads();
    for (int at = threadIdx.x; at < Tiling::kTileM * Tiling::kTileN / kFour; at += kThreads) {
      const int row = at / (Tiling::kTileN / kFour), column = at % (Tiling::kTileN / kFour) * kFour;
      if (first_m + row >= M || first_n + column >= N) continue;
      float c[kFour] = {};
#pragma unroll
      for (int g = 0; g < Tiling::kGroups; ++g) {
        const float4 four = *reinterpret_cast<const float4*>(sums + (g * Tiling::kTileM + row) * kPitch + column);
        c[0] += four.x, c[1] += four.y, c[2] += four.z, c[3] += four.w;
      }
      epilogue(first_m + row, first_n + column, c);
    }
  }
};

}  // namespace aim_fast::cuda::tiles
