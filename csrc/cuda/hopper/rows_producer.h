// The row kernels' producer: one thread that keeps the ring full by TMA, and runs ahead into the next item.
// Its loops stay rolled: the role has few registers.
#pragma once

#include "cuda/hopper/rows_ring.h"

namespace aim_fast::cuda::hopper {

template <class Plan>
class Producer {
  static constexpr ptx::Keep kWeights = ptx::Keep::kLast;

 public:
  AIM_DEVICE Producer(const RowsCall& call, uint32_t shared) : call_(call), ring_{shared} {}

  AIM_DEVICE void run() {
#pragma unroll 1
    for (int i = first_item(call_); i < call_.items; i += item_stride(call_)) {
      const Item item = item_of(call_, i);
      first_product(item);
      if constexpr (Plan::kBackward) hidden(item);
      if (item.count) second_product(item);
    }
  }

 private:
  AIM_DEVICE void first_product(const Item& item) {
#pragma unroll 1
    for (int k = 0; k < call_.steps; ++k) {
      take(call_.grid.consumers * Plan::kInputBytes + Plan::kWeightBytes);
      input(item, k);
      if constexpr (Plan::kBackward) {
        weights_2(k);
      } else {
        weights_1(k);
      }
      ring_.advance();
    }
  }

  AIM_DEVICE void hidden(const Item& item) {
#pragma unroll 1
    for (int chunk = 0; chunk < Plan::kChunks; ++chunk) {
      take(call_.grid.consumers * kTileBytes);
#pragma unroll 1
      for (int group = 0; group < call_.grid.consumers; ++group) {
        ptx::tma_load(ring_.other(ring_.stage) + group * kTileBytes, &call_.z, ring_.full(ring_.stage),
                      chunk * kColumns, item.row + group * kGroupRows);
      }
      ring_.advance();
    }
  }

  AIM_DEVICE void second_product(const Item& item) {
#pragma unroll 1
    for (int i = 0; i < item.count; ++i) {
      const int column = column_of<Plan>(call_, item, i);
      const bool again = call_.skip && i >= kept_of(call_, item);
      take(Plan::kWeightBytes + (again ? call_.grid.consumers * Plan::kInputBytes : 0));
      if constexpr (Plan::kBackward) {
        weights_1(column);
      } else {
        weights_2(column);
      }
      if (again) input<ptx::Keep::kFirst>(item, column);
      ring_.advance();
    }
  }

  // The ring's next stage, once nobody reads it any more; so many bytes will come.
  AIM_DEVICE void take(uint32_t bytes) {
    ring_.wait_empty();
    ptx::mbarrier_expect(ring_.full(ring_.stage), bytes);
  }

  template <ptx::Keep kKeep = ptx::Keep::kNormal>
  AIM_DEVICE void input(const Item& item, int column) {
    const uint32_t to = ring_.input(ring_.stage), full = ring_.full(ring_.stage);
#pragma unroll 1
    for (int group = 0; group < call_.grid.consumers; ++group) {
      const int row = item.row + group * kGroupRows;
      ptx::tma_load<kKeep>(to + group * Plan::kInputBytes, &call_.input, full, column * kColumns, row);
      if constexpr (Plan::kFloatInput) {
        ptx::tma_load<kKeep>(to + group * Plan::kInputBytes + kTileBytes, &call_.input, full, column * kColumns + 32,
                             row);
      }
    }
  }

  // [H, 64] of w1: two boxes of H / 2 rows.
  AIM_DEVICE void weights_1(int column) {
#pragma unroll 1
    for (int half = first_half(); half < end_half(); ++half) {
      weights(half * Plan::kWeightBytes / 2, call_.w1, column * kColumns, half * (Plan::H / 2));
    }
  }

  // [64, H] of w2: for each 64 columns two boxes of 32 rows.
  AIM_DEVICE void weights_2(int column) {
#pragma unroll 1
    for (int half = first_half(); half < end_half(); ++half) {
#pragma unroll 1
      for (int chunk = 0; chunk < Plan::kChunks; ++chunk) {
        weights(chunk * kTileBytes + half * (kTileBytes / 2), call_.w2, chunk * kColumns,
                column * kColumns + half * (kColumns / 2));
      }
    }
  }

  // In a cluster of two each producer fetches the half of its rank, for both.
  AIM_DEVICE int first_half() const { return call_.grid.cluster == 2 ? rank_of(call_) : 0; }
  AIM_DEVICE int end_half() const { return call_.grid.cluster == 2 ? rank_of(call_) + 1 : 2; }

  AIM_DEVICE void weights(int offset, const ptx::TensorMap& map, int x, int y) {
    const uint32_t to = ring_.other(ring_.stage) + offset, full = ring_.full(ring_.stage);
    if (call_.grid.cluster == 2) {
      ptx::tma_load_multicast<kWeights>(to, &map, full, x, y, 3);
    } else {
      ptx::tma_load<kWeights>(to, &map, full, x, y);
    }
  }

  const RowsCall& call_;
  Ring<Plan> ring_;
};

}  // namespace aim_fast::cuda::hopper
