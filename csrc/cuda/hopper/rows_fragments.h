// What a thread of the row kernels holds of a block of columns, and how it comes by it: from a vector, and from the
// input rows in a stage.
#pragma once

#include "cuda/hopper/rows_ring.h"
#include "cuda/hopper/rows_staging.h"
#include "cuda/vectors.h"

namespace aim_fast::cuda::hopper {

// In accumulators and operands alike, the eight values of a thread in 16 columns are four pairs q: of the columns
// 2 (lane % 4) + 8 (q / 2) and the next, and of the row lane / 4 + 8 (q % 2).
AIM_DEVICE int pair_column(int lane, int q) { return lane % 4 * 2 + q / 2 * 8; }
AIM_DEVICE int pair_row(int lane, int q) { return lane / 4 + q % 2 * 8; }

// Calls f.template operator()<Type>() with the 16-bit type.
template <class F>
AIM_DEVICE void with_half_type(Dtype dtype, F&& f) {
  if (dtype == Dtype::kBFloat16) {
    f.template operator()<ptx::BFloat16>();
  } else {
    f.template operator()<ptx::Half>();
  }
}

// The same as below of 16-bit elements, as they are.
template <int N>
AIM_DEVICE void load_pairs(uint32_t (&pairs)[N], const Array& vector, int column, int lane) {
  const int first = column + pair_column(lane, 0);
#pragma unroll
  for (int i = 0; i < N; ++i) pairs[i] = ptx::load32(vector.data + 2 * (first + 8 * i));
}

// What this thread needs of a vector over columns, for 8 N columns from `column` on: pair q / 2 of the j-th 16 of them
// is v[2 j + q / 2].
template <int N>
AIM_DEVICE void load_columns(float2 (&v)[N], const Array& vector, int column, int lane) {
  const int first = column + pair_column(lane, 0);
  if (vector.dtype == Dtype::kFloat32) {
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = *reinterpret_cast<const float2*>(vector.data + 4 * (first + 8 * i));
    return;
  }
  uint32_t pairs[N];
  load_pairs(pairs, vector, column, lane);
  with_half_type(vector.dtype, [&]<class T>() {
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = {ptx::low<T>(pairs[i]), ptx::high<T>(pairs[i])};
  });
}

// Reads the warp's block of the input rows in a stage, as it came.
template <class Plan>
class InputBlock {
 public:
  AIM_DEVICE InputBlock(const uint8_t* block, int lane) : block_(block), lane_(lane) {}

  // The pairs of columns 16 j to 16 j + 15.
  AIM_DEVICE void read(int j, float2 (&v)[4]) const {
    if constexpr (Plan::kFloatInput) {
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const int row = pair_row(lane_, q), byte = (j % 2 * 16 + pair_column(lane_, q)) * 4;
        v[q] = *reinterpret_cast<const float2*>(block_ + j / 2 * kTileBytes + row * 128 + (byte ^ (row & 7) << 4));
      }
    } else {
      uint32_t r[4];
      load(j, r);
      convert(r, v);
    }
  }
  // The same in two steps, of 16-bit rows.
  AIM_DEVICE void load(int j, uint32_t (&r)[4]) const { ptx::ldmatrix_x4(r, block_ + fragment(lane_, j)); }
  AIM_DEVICE static void convert(const uint32_t (&r)[4], float2 (&v)[4]) {
    using T = typename Plan::T;
#pragma unroll
    for (int q = 0; q < 4; ++q) v[q] = {ptx::low<T>(r[q]), ptx::high<T>(r[q])};
  }

 private:
  const uint8_t* block_;
  int lane_;
};

}  // namespace aim_fast::cuda::hopper
