// The epilogue of the row kernels' second product: a block of 64 columns from the accumulator to y or dx.
#pragma once

#include "cuda/hopper/rows_fragments.h"
#include "cuda/hopper/rows_staging.h"

namespace aim_fast::cuda::hopper {

// Forward: y = factor * scale * (o + b2) + skip * x + residual;  K1: dx = o + skip * dy.
//
// kPlain: as is_plain says.
//
// For each block: prepare, take, write.
template <class Plan, bool kPlain>
class Output {
  using T = typename Plan::T;
  static constexpr bool kBiasEarly = kPlain || Plan::kFloatInput;

 public:
  // What there are registers for: the next block's product beside the writing of this one, b2 a block ahead, and the
  // skip's rows, as they are, before the product is waited for.
  static constexpr bool kOverlaps = kPlain || Plan::kBackward || Plan::H < 256;
  static constexpr bool kAsksAhead = kBiasEarly && kOverlaps && !Plan::kFewRegisters;
  static constexpr bool kKeepsInput =
      kPlain && !Plan::kFloatInput && !Plan::kFewRegisters && (Plan::kBackward || Plan::H != 256);

  // column: of the first block.
  AIM_DEVICE Output(const RowsCall& call, Staging<Plan::kTurns>& staging, int lane, int column)
      : call_(call), staging_(staging), lane_(lane) {
    if constexpr (kAsksAhead) ask(column);
    prefetch_residual(column);
  }

  // The block at `column`, whose input rows have come; `next` is the column of the one after it.
  AIM_DEVICE void prepare(int column, int next, const InputBlock<Plan>& input) {
    if constexpr (!Plan::kBackward) {
      if (residual_staged()) {
        staging_.acquire();
        staging_.fetch_residual(column);
      }
      if (kBiasEarly && call_.b2) take_bias(column, next);
      prefetch_residual(next);
    }
    if constexpr (kKeepsInput) {
      if (call_.skip) {
#pragma unroll
        for (int j = 0; j < 4; ++j) input.load(j, input_[j]);
      }
    }
  }

  // v: of the block at `column`, 16 columns each, all but the residual; release() is called when the stage is read.
  template <class Release>
  AIM_DEVICE void take(float2 (&v)[4][4], const float (&o)[32], int column, const float (&factor)[2],
                       const InputBlock<Plan>& input, Release release) {
    if constexpr (kKeepsInput) release();
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int q = 0; q < 4; ++q) v[j][q] = {o[j * 8 + q * 2], o[j * 8 + q * 2 + 1]};
    }
    if constexpr (!Plan::kBackward) {
      if (call_.b2) {
        if constexpr (!kBiasEarly) take_bias(column, column);
#pragma unroll
        for (int j = 0; j < 4; ++j) add(v[j], {bias_[2 * j], bias_[2 * j], bias_[2 * j + 1], bias_[2 * j + 1]});
      }
      if (!kPlain && call_.wide_scale) scale(v, column);
    }
    if (call_.skip) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float2 x[4];
        if constexpr (kKeepsInput) {
          input.convert(input_[j], x);
        } else {
          input.read(j, x);
        }
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          const float f = Plan::kBackward ? 1.f : factor[q % 2];
          v[j][q] = {fmaf(v[j][q].x, f, x[q].x), fmaf(v[j][q].y, f, x[q].y)};
        }
      }
    } else if constexpr (!Plan::kBackward) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int q = 0; q < 4; ++q) v[j][q] = {v[j][q].x * factor[q % 2], v[j][q].y * factor[q % 2]};
      }
    }
    if constexpr (!kKeepsInput) release();
  }

  AIM_DEVICE void write(float2 (&v)[4][4], int column) {
    if constexpr (!Plan::kBackward) {
      if (call_.residual) add_residual(v, column);
    }
    if (direct()) {
#pragma unroll
      for (int j = 0; j < 4; ++j) write_floats(v[j], column + 16 * j);
      staging_.next();
      return;
    }
    if (!residual_staged()) staging_.acquire();  // as late as can be: the block before is on its way out
    with_out_type([&]<class Out>() {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        uint32_t r[4];
#pragma unroll
        for (int q = 0; q < 4; ++q) r[q] = ptx::pack<Out>(v[j][q].x, v[j][q].y);
        staging_.put(j, r);
      }
    });
    if (kPlain || call_.out_by_map) {
      staging_.template send<ptx::Keep::kFirst>(call_.out, column);
    } else {
      staging_.write(column);
    }
  }

 private:
  AIM_DEVICE bool direct() const { return !kPlain && call_.out_rows.dtype == Dtype::kFloat32; }
  AIM_DEVICE bool residual_staged() const {
    return !Plan::kBackward && call_.residual && (kPlain || call_.residual.dtype != Dtype::kFloat32);
  }
  template <class F>
  AIM_DEVICE void with_out_type(F&& f) const {
    if constexpr (kPlain) {
      f.template operator()<T>();
    } else {
      with_half_type(call_.out_rows.dtype, f);
    }
  }

  // b2 of the block at `column`.
  AIM_DEVICE void ask(int column) {
    if (Plan::kBackward || !call_.b2) return;
    if constexpr (kPlain) {
      load_pairs(ahead_, call_.b2, column, lane_);
    } else {
      load_columns(ahead_, call_.b2, column, lane_);
    }
  }

  // Into bias_.
  AIM_DEVICE void take_bias(int column, int next) {
    if constexpr (!kAsksAhead) ask(column);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if constexpr (kPlain) {
        bias_[i] = {ptx::low<T>(ahead_[i]), ptx::high<T>(ahead_[i])};
      } else {
        bias_[i] = ahead_[i];
      }
    }
    if constexpr (kAsksAhead) ask(next);
  }

  AIM_DEVICE static void add(float2 (&v)[4], const float2 (&w)[4]) {
#pragma unroll
    for (int q = 0; q < 4; ++q) v[q] = {v[q].x + w[q].x, v[q].y + w[q].y};
  }

  AIM_DEVICE void scale(float2 (&v)[4][4], int column) const {
    float2 c[8];
    load_columns(c, call_.scale, column, lane_);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const float2 w = c[2 * j + q / 2];
        v[j][q] = {v[j][q].x * w.x, v[j][q].y * w.y};
      }
    }
  }

  // Of fp32 as x is, into L2: a lane fetches half of a row's 256 bytes.
  AIM_DEVICE void prefetch_residual(int column) const {
    if (!Plan::kFloatInput || Plan::kBackward || !call_.residual || residual_staged()) return;
    ptx::prefetch_l2(staging_.residual_row(lane_ / 2) + 4 * column + lane_ % 2 * 128);
  }

  AIM_DEVICE void add_residual(float2 (&v)[4][4], int column) const {
    if (!residual_staged()) {
      // Four lanes read the 32 bytes of a sector.
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float2 w[4];
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          const int at = column + 16 * j + pair_column(lane_, q);
          w[q] = *reinterpret_cast<const float2*>(staging_.residual_row(pair_row(lane_, q)) + 4 * at);
        }
        add(v[j], w);
      }
      return;
    }
    ptx::cp_async_wait<0>();
    __syncwarp();
    const auto add_staged = [&]<class In>() {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        uint32_t r[4];
        staging_.get(j, r);
        float2 w[4];
#pragma unroll
        for (int q = 0; q < 4; ++q) w[q] = {ptx::low<In>(r[q]), ptx::high<In>(r[q])};
        add(v[j], w);
      }
    };
    if constexpr (kPlain) {
      add_staged.template operator()<T>();
    } else {
      with_half_type(call_.residual.dtype, add_staged);
    }
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
  Staging<Plan::kTurns>& staging_;
  int lane_;
  float2 bias_[8];                                              // b2 of the block's columns
  std::conditional_t<kPlain, uint32_t, float2> ahead_[8] = {};  // and of the next ones'
  uint32_t input_[4][4];                                        // the skip's rows
};

}  // namespace aim_fast::cuda::hopper
