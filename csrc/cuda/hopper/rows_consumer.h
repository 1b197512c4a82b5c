// A consumer warpgroup of the row kernels: 64 rows through both products, the hidden block between them in registers.
#pragma once

#include "cuda/activation.h"
#include "cuda/hopper/rows_output.h"

namespace aim_fast::cuda::hopper {

template <class Plan>
class Consumer {
  using T = typename Plan::T;
  static constexpr int H = Plan::H;
  static constexpr bool kBackward = Plan::kBackward;
  // wgmma is at most 256 columns wide; H = 320 is an accumulator of two.
  static constexpr int kWide = std::min(H, 256), kRest = H - kWide;

 public:
  AIM_DEVICE Consumer(const RowsCall& call, uint8_t* memory)
      : call_(call),
        memory_(memory),
        ring_{ptx::shared_address(memory)},
        lane_(threadIdx.x % 32),
        group_(threadIdx.x / 128),
        warp_(threadIdx.x / 32 % 4),
        staging_(memory + Plan::kStaging + group_ * Plan::kTurns * kTileBytes + warp_ * kBlockBytes,
                 reinterpret_cast<char**>(memory + Plan::kAddresses) + (group_ * 4 + warp_) * 2 * kWarpRows, lane_) {}

  AIM_DEVICE void run() {
    scale_ = call_.alpha;
    if (call_.scale && !call_.wide_scale) scale_ *= load_float(call_.scale.data, call_.scale.dtype, 0);
#pragma unroll 1
    for (int i = first_item(call_); i < call_.items; i += item_stride(call_)) {
      const Item item = item_of(call_, i);
      begin(item);
      float z[H / 2];              // [64, H]; dh in the backward
      uint32_t hidden[H / 16][4];  // the same rounded, as the second product's operand; dz in the backward
      first_product(z, item);
      const auto pass_all = [&]<Activation A>() {
        through_activation(z, hidden, item, [](auto&... values) { pass<A>(values...); });
      };
      if constexpr (Plan::kOneBranch) {
        with_activation(call_.activation, pass_all);
      } else if (call_.activation == Activation::kGelu) {
        pass_all.template operator()<Activation::kGelu>();
      } else {
        through_activation(z, hidden, item, [this](auto&... values) {
          with_activation(call_.activation, [&]<Activation A>() { pass<A>(values...); });
        });
      }
      if (!item.count) continue;
      if (Plan::kFewRegisters || is_plain<T>(call_)) {
        second_product<true>(hidden, item);
      } else if constexpr (!Plan::kFewRegisters) {
        second_product<false>(hidden, item);
      }
    }
    if (lane_ == 0) ptx::bulk_wait_read<0>();  // shared memory is read until then
    __syncwarp();
  }

 private:
  AIM_DEVICE void begin(const Item& item) {
    const uint32_t row = item.row + group_ * kGroupRows + warp_ * kWarpRows;
    staging_.locate(call_.out_rows, call_.residual, row, call_.M);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t m = std::min(row + pair_row(lane_, half), call_.M - 1);
      const DeviceRows& rows = call_.row_scale;
      row_scale_[half] = rows ? load_float(rows.row(m), rows.dtype, 0) : 1.f;
      factor_[half] = scale_ * row_scale_[half];
    }
  }

  AIM_DEVICE void first_product(float (&z)[H / 2], const Item& item) {
    const bool keep_rounded = call_.keep_rounded && item.leads;
    begin_with_bias(z);
#pragma unroll 1
    for (int k = 0; k < call_.steps; ++k) {
      ring_.wait_full();
      first_step(z, Plan::kFloatInput ? rounded_input(k, keep_rounded) : input_tile());
      // No step is begun before the last has ended: the other consumer multiplies meanwhile.
      ptx::wgmma_wait<0>();
      release(ring_.stage);
      ring_.advance();
    }
    ptx::wgmma_landed(z);
    if constexpr (Plan::kFloatInput) sync_group();  // the staging buffers are read
  }

  // The sums begin with b1, or 0.
  AIM_DEVICE void begin_with_bias(float (&z)[H / 2]) const {
    float2 b[H / 8] = {};
    if (!kBackward && call_.b1) load_columns(b, call_.b1, 0, lane_);
#pragma unroll
    for (int i = 0; i < H / 4; ++i) {
      const float2 pair = b[i / 4 * 2 + i % 4 / 2];
      z[2 * i] = pair.x;
      z[2 * i + 1] = pair.y;
    }
  }

  // z [64, H] += the operand's tile [64, 64] by the weights of the ring's stage.
  AIM_DEVICE void first_step(float (&z)[H / 2], uint32_t tile) {
    const uint64_t a = ptx::descriptor_k_major(tile);
    const uint32_t weights = ring_.other(ring_.stage);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      multiply_first<kWide>(reinterpret_cast<float (&)[kWide / 2]>(z[0]), a, weights, k);
      if constexpr (kRest > 0) {
        auto& rest = reinterpret_cast<float (&)[kRest / 2]>(z[kWide / 2]);
        multiply_first<kRest>(rest, a, weights + kWide * 128, k);
      }
    }
    ptx::wgmma_commit();
  }
  // z [64, N] += columns 16 k to 16 k + 15 of a tile by the weights.
  template <int N>
  AIM_DEVICE static void multiply_first(float (&z)[N / 2], uint64_t a, uint32_t weights, int k) {
    // w1's tile is [H, 64], K-major; w2's is [64, H] in blocks of 64 columns, MN-major.
    const uint64_t b =
        kBackward ? ptx::descriptor_mn_major(weights, kTileBytes) + 128 * k : ptx::descriptor_k_major(weights) + 2 * k;
    ptx::Wgmma<N, T, false, kBackward>::ss(z, a + 2 * k, b, 1);
  }

  AIM_DEVICE uint32_t input_tile() const { return ring_.input(ring_.stage) + group_ * Plan::kInputBytes; }

  // The group's fp32 rows of the ring's stage rounded into a tile in the staging buffers, and kept so if wanted.
  AIM_DEVICE uint32_t rounded_input(int step, bool keep) {
    const InputBlock<Plan> input = input_block(ring_.stage);
    uint32_t r[4][4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float2 v[4];
      input.read(j, v);
#pragma unroll
      for (int q = 0; q < 4; ++q) r[j][q] = ptx::pack<T>(v[q].x, v[q].y);
    }
    staging_.acquire();
#pragma unroll
    for (int j = 0; j < 4; ++j) staging_.put(j, r[j]);
    const uint32_t tile = staging_.address() - warp_ * kBlockBytes;
    if (keep) {
      staging_.send(call_.rounded, step * kColumns);
    } else {
      ptx::fence_proxy_async();
      staging_.next();
    }
    sync_group();
    return tile;
  }

  // The four warps that multiply together; barrier 0 is __syncthreads'. A warp multiplies the rows that it wrote, and
  // the emulator sees no more than that; but PTX does not say which of a tile's rows a warp reads.
  AIM_DEVICE void sync_group() const { ptx::named_barrier_sync(1 + group_, 128); }

  // Eight values through act, or of z through act and of dh through its derivative.
  template <Activation A>
  AIM_DEVICE static void pass(float (&z)[8]) {
    activate<A, T>(z);
  }
  template <Activation A>
  AIM_DEVICE static void pass(float (&z)[8], float (&dh)[8]) {
    activate_backward<A, T>(z, dh);
  }

  template <class Pass>
  AIM_DEVICE void through_activation(const float (&z)[H / 2], uint32_t (&hidden)[H / 16][4], const Item& item,
                                     Pass pass) {
    if constexpr (kBackward) {
      backward_hidden(z, hidden, item, pass);
    } else {
      forward_hidden(z, hidden, item, pass);
    }
  }

  // z is stored if wanted; hidden = act(z).
  template <class Pass>
  AIM_DEVICE void forward_hidden(const float (&z)[H / 2], uint32_t (&hidden)[H / 16][4], const Item& item, Pass pass) {
    const bool keep = call_.keep_z && item.leads;
#pragma unroll
    for (int chunk = 0; chunk < Plan::kChunks; ++chunk) {
      if (keep) {
        staging_.acquire();
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          uint32_t r[4];
          pack(r, reinterpret_cast<const float (&)[8]>(z[(chunk * 4 + j) * 8]));
          staging_.put(j, r);
        }
        staging_.send(call_.z, chunk * kColumns);
      }
#pragma unroll
      for (int g = chunk * 4; g < chunk * 4 + 4; ++g) {
        float v[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = z[g * 8 + i];
        pass(v);
        pack(hidden[g], v);
      }
    }
  }

  // dh *= factor; hidden = dz = dh * act'(z), and h = row_scale * act(z), each stored if wanted.
  template <class Pass>
  AIM_DEVICE void backward_hidden(const float (&dh)[H / 2], uint32_t (&hidden)[H / 16][4], const Item& item,
                                  Pass pass) {
    const bool keep_dz = call_.keep_dz && item.leads, keep_h = call_.keep_h && item.leads;
#pragma unroll
    for (int chunk = 0; chunk < Plan::kChunks; ++chunk) {
      uint32_t z[4][4];
      ring_.wait_full();
      const uint8_t* block = memory_ + (ring_.other(ring_.stage) - ring_.shared) + block_offset(kTileBytes);
#pragma unroll
      for (int j = 0; j < 4; ++j) ptx::ldmatrix_x4(z[j], block + fragment(lane_, j));
      release(ring_.stage);
      ring_.advance();
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int g = chunk * 4 + j;
        float h[8], d[8];
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          h[2 * q] = ptx::low<T>(z[j][q]);
          h[2 * q + 1] = ptx::high<T>(z[j][q]);
          d[2 * q] = factor_[q % 2] * dh[g * 8 + 2 * q];
          d[2 * q + 1] = factor_[q % 2] * dh[g * 8 + 2 * q + 1];
        }
        pass(h, d);
#pragma unroll
        for (int i = 0; i < 8; ++i) h[i] *= row_scale_[i / 2 % 2];
        pack(hidden[g], d);
        pack(z[j], h);
      }
      if (keep_dz) {
        staging_.acquire();
#pragma unroll
        for (int j = 0; j < 4; ++j) staging_.put(j, hidden[chunk * 4 + j]);
        staging_.send(call_.dz, chunk * kColumns);
      }
      if (keep_h) {
        staging_.acquire();
#pragma unroll
        for (int j = 0; j < 4; ++j) staging_.put(j, z[j]);
        staging_.send(call_.h, chunk * kColumns);
      }
    }
  }

  AIM_DEVICE static void pack(uint32_t (&r)[4], const float (&v)[8]) {
#pragma unroll
    for (int q = 0; q < 4; ++q) r[q] = ptx::pack<T>(v[2 * q], v[2 * q + 1]);
  }

  // A step's product runs while the block before it is written out. The accumulator has been read by then: ptxas would
  // serialise a product whose registers anything else touches (C7514).
  template <bool kPlain>
  AIM_DEVICE void second_product(const uint32_t (&hidden)[H / 16][4], const Item& item) {
    int column = column_of<Plan>(call_, item, 0) * kColumns;
    Output<Plan, kPlain> output(call_, staging_, lane_, column);
    float o[32];
    float2 v[4][4];
    if constexpr (!Output<Plan, kPlain>::kOverlaps) {
#pragma unroll 1
      for (int i = 0; i < item.count; ++i) {
        column = column_of<Plan>(call_, item, i) * kColumns;
        begin_step(o, hidden);
        end_step(v, o, output, column, column);
        output.write(v, column);
      }
      return;
    }
    begin_step(o, hidden);
#pragma unroll 1
    for (int i = 1;; ++i) {
      const bool last = i == item.count;
      const int next = last ? column : column_of<Plan>(call_, item, i) * kColumns;
      end_step(v, o, output, column, next);
      if (last) break;
      begin_step(o, hidden);
      output.write(v, column);
      column = next;
    }
    output.write(v, column);
  }

  // o [64, 64] = hidden by the weights in the ring's stage, once they are there.
  AIM_DEVICE void begin_step(float (&o)[32], const uint32_t (&hidden)[H / 16][4]) {
    ring_.wait_full();
    const uint32_t weights = ring_.other(ring_.stage);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < H / 16; ++k) {
      // w1's tile is [H, 64], MN-major; w2's is [64, H] in blocks of 64 columns, K-major.
      const uint64_t b = kBackward ? ptx::descriptor_mn_major(weights, kTileBytes) + 128 * k
                                   : ptx::descriptor_k_major(weights + k / 4 * kTileBytes) + 2 * (k % 4);
      ptx::Wgmma<kColumns, T, false, kBackward>::rs(o, hidden[k], b, k > 0);
    }
    ptx::wgmma_commit();
  }

  // v = the block at `column`, all but the residual; the stage is free then. `next`: the column of the block after it.
  template <bool kPlain>
  AIM_DEVICE void end_step(float2 (&v)[4][4], float (&o)[32], Output<Plan, kPlain>& output, int column, int next) {
    const int stage = ring_.stage;
    ring_.advance();
    output.prepare(column, next, input_block(stage));
    ptx::wgmma_wait<0>();
    ptx::wgmma_landed(o);
    output.take(v, o, column, factor_, input_block(stage), [&] { release(stage); });
  }

  // Where this warp's rows begin among tiles of so many bytes, one a consumer.
  AIM_DEVICE int block_offset(int tile_bytes) const { return group_ * tile_bytes + warp_ * kBlockBytes; }
  AIM_DEVICE InputBlock<Plan> input_block(int stage) const {
    return {memory_ + stage * Plan::kStageBytes + block_offset(Plan::kInputBytes), lane_};
  }

  // This warp is done with a stage: tells every producer that writes into it.
  AIM_DEVICE void release(int stage) {
    __syncwarp();
    if (lane_ < call_.grid.cluster) ptx::mbarrier_arrive_cluster(ptx::map_to_rank(ring_.empty(stage), lane_));
  }

  const RowsCall& call_;
  uint8_t* const memory_;
  Ring<Plan> ring_;
  const int lane_, group_, warp_;
  Staging<Plan::kTurns> staging_;
  float scale_;                     // alpha, and the scale if it is one number
  float row_scale_[2], factor_[2];  // of this thread's two rows; times scale_
};

}  // namespace aim_fast::cuda::hopper
