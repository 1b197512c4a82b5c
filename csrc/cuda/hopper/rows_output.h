// The epilogue of the row kernels' second product: a block of 64 columns from the accumulator to y or dx.
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

// What this thread needs of a vector over columns, for the 16 columns from `column` on.
AIM_DEVICE void load_columns(float2 (&v)[2], const Array& vector, int column, int lane) {
  v[0] = load_floats(vector.data, vector.dtype, column + pair_column(lane, 0));
  v[1] = load_floats(vector.data, vector.dtype, column + pair_column(lane, 2));
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
      using T = typename Plan::T;
      uint32_t r[4];
      ptx::ldmatrix_x4(r, block_ + fragment(lane_, j));
#pragma unroll
      for (int q = 0; q < 4; ++q) v[q] = {ptx::low<T>(r[q]), ptx::high<T>(r[q])};
    }
  }

 private:
  const uint8_t* block_;
  int lane_;
};

// Forward: y = factor * scale * (o + b2) + skip * x + residual;  K1: dx = o + skip * dy.
template <class Plan>
class Output {
 public:
  AIM_DEVICE Output(const RowsCall& call, Staging& staging, int lane) : call_(call), staging_(staging), lane_(lane) {}

  AIM_DEVICE bool residual_staged() const {
    return !Plan::kBackward && call_.residual && call_.residual.dtype != Dtype::kFloat32;
  }

  // The block at `column`; release() is called when the input is read.
  template <class Release>
  AIM_DEVICE void write(const float (&o)[32], int column, const float (&factor)[2], const InputBlock<Plan>& input,
                        Release release) {
    const bool direct = call_.out_rows.dtype == Dtype::kFloat32;
    if (!direct && !residual_staged()) staging_.acquire();
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float2 v[4];
#pragma unroll
      for (int q = 0; q < 4; ++q) v[q] = {o[j * 8 + q * 2], o[j * 8 + q * 2 + 1]};
      if constexpr (!Plan::kBackward) scale(v, column + 16 * j, factor);
      if (call_.skip) {
        float2 x[4];
        input.read(j, x);
        add(v, x);
      }
      if constexpr (!Plan::kBackward) {
        if (call_.residual) add_residual(v, j, column);
      }
      if (direct) {
        write_floats(v, column + 16 * j);
      } else {
        uint32_t r[4];
        with_half_type(call_.out_rows.dtype, [&]<class Out>() {
#pragma unroll
          for (int q = 0; q < 4; ++q) r[q] = ptx::pack<Out>(v[q].x, v[q].y);
        });
        staging_.put(j, r);
      }
    }
    release();
    if (call_.out_by_map) {
      staging_.send(call_.out, column);
    } else if (!direct) {
      staging_.write(column);
    } else {
      staging_.next();
    }
  }

 private:
  AIM_DEVICE static void add(float2 (&v)[4], const float2 (&w)[4]) {
#pragma unroll
    for (int q = 0; q < 4; ++q) v[q] = {v[q].x + w[q].x, v[q].y + w[q].y};
  }

  AIM_DEVICE void scale(float2 (&v)[4], int column, const float (&factor)[2]) const {
    float2 c[2];
    if (call_.b2) {
      load_columns(c, call_.b2, column, lane_);
      add(v, {c[0], c[0], c[1], c[1]});
    }
    if (call_.wide_scale) {
      load_columns(c, call_.scale, column, lane_);
#pragma unroll
      for (int q = 0; q < 4; ++q) v[q] = {v[q].x * c[q / 2].x, v[q].y * c[q / 2].y};
    }
#pragma unroll
    for (int q = 0; q < 4; ++q) v[q] = {v[q].x * factor[q % 2], v[q].y * factor[q % 2]};
  }

  AIM_DEVICE void add_residual(float2 (&v)[4], int j, int column) const {
    float2 w[4];
    if (call_.residual.dtype == Dtype::kFloat32) {
      // Four lanes read the 32 bytes of a sector.
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const int at = column + 16 * j + pair_column(lane_, q);
        w[q] = *reinterpret_cast<const float2*>(staging_.residual_row(pair_row(lane_, q)) + 4 * at);
      }
    } else {
      uint32_t r[4];
      staging_.get(j, r);
      with_half_type(call_.residual.dtype, [&]<class In>() {
#pragma unroll
        for (int q = 0; q < 4; ++q) w[q] = {ptx::low<In>(r[q]), ptx::high<In>(r[q])};
      });
    }
    add(v, w);
  }

  // Four lanes write the 32 bytes of a sector.
  AIM_DEVICE void write_floats(const float2 (&v)[4], int column) const {
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const int row = pair_row(lane_, q);
      if (!staging_.inside(row)) continue;
      *reinterpret_cast<float2*>(staging_.out_row(row) + 4 * (column + pair_column(lane_, q))) = v[q];
    }
  }

  const RowsCall& call_;
  Staging& staging_;
  int lane_;
};

}  // namespace aim_fast::cuda::hopper
