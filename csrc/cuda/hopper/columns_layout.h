// K2 on sm_90a: the parts of a CTA, its shared memory, and what it does.
#pragma once

#include "cuda/hopper/columns_call.h"
#include "cuda/ptx.h"

namespace aim_fast::cuda::hopper {

constexpr int kConsumers = 2;  // warpgroups that multiply
constexpr int kColumnsThreads = 128 * (kConsumers + 1);
constexpr int kSumThreads = 64;  // two warps
// Registers a thread; together not more than the launch gives, 168 each.
constexpr int kConsumerRegisters = 224, kProducerRegisters = 56;
static_assert(kConsumers * kConsumerRegisters + kProducerRegisters <= (kConsumers + 1) * 168);

template <int H>
struct ColumnsLayout {
  static constexpr ColumnsPlan kPlan = *find_columns_plan(H);
  static constexpr int kCluster = H / kPlan.tile_h;
  // A consumer's part: kBlocks times 64 rows by kWidth columns.
  static constexpr int kBlocks = kPlan.tile_h / 64 / kPlan.along_h;
  static constexpr int kWidth = kPlan.tile_d * kPlan.along_h / kConsumers;
  static constexpr int kBoxBytes = kStepRows * 128;
  static constexpr int kHiddenBytes = kPlan.tile_h / 64 * kBoxBytes, kWideBytes = kPlan.tile_d / 64 * kBoxBytes;
  static constexpr int kStageBytes = kHiddenBytes + kWideBytes;
  static constexpr int kStages = kPlan.stages;
  // The stages' data, two barriers to each, and the factors of its rows.
  static constexpr int kFactors = kStages * (kStageBytes + 16);
  static constexpr int kSharedBytes = kFactors + kStages * kStepRows * 4;
  static_assert(H % kPlan.tile_h == 0 && kPlan.tile_h % (64 * kPlan.along_h) == 0 && kWidth <= 256);
  static_assert(kBlocks * kWidth / 2 <= 192 && kSharedBytes <= 227 << 10 && kCluster <= 8);
};

// One thread's place in the ring of stages, and the barriers that say whose turn a stage is.
template <class Layout>
struct ColumnsRing {
  uint32_t shared;
  int stage = 0;
  uint32_t phase = 0;

  AIM_DEVICE uint32_t data() const { return shared + stage * Layout::kStageBytes; }
  AIM_DEVICE uint32_t full() const { return barriers() + 8 * stage; }
  AIM_DEVICE uint32_t empty(int which) const { return barriers() + 8 * (Layout::kStages + which); }
  AIM_DEVICE void advance() {
    if (++stage == Layout::kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
  // Arrivals that make a stage full, beside the bytes of TMA, and empty.
  AIM_DEVICE void initialize(int arrivals, int releases) const {
    for (int i = 0; i < Layout::kStages; ++i) {
      ptx::mbarrier_init(barriers() + 8 * i, arrivals);
      ptx::mbarrier_init(empty(i), releases);
    }
    ptx::fence_mbarrier_init();
  }
  // By a whole warp that has read the stage. All CTAs of the cluster write to it, so all of them are told.
  AIM_DEVICE void release(int which) const {
    __syncwarp();
    const uint32_t lane = threadIdx.x % 32;
    if constexpr (Layout::kCluster == 1) {
      if (lane == 0) ptx::mbarrier_arrive(empty(which));
    } else {
      if (lane < Layout::kCluster) ptx::mbarrier_arrive_cluster(ptx::map_to_rank(empty(which), lane));
    }
  }

 private:
  AIM_DEVICE uint32_t barriers() const { return shared + Layout::kStages * Layout::kStageBytes; }
};

// What a CTA does.
struct ColumnsJob {
  int product, split;
  int64_t column;  // the first of its columns of D
  int rank;        // in the cluster: which rows of H
  int begin, end;  // of its steps

  template <class Layout>
  static AIM_DEVICE ColumnsJob of(const ColumnsCall& call) {
    const int tiles = static_cast<int>(tiles_of(call.D, Layout::kPlan.tile_d)), jobs = call.products * tiles;
    const int cluster = blockIdx.x / Layout::kCluster, job = cluster % jobs;
    const int64_t steps = steps_of(call.M);
    ColumnsJob out;
    out.product = call.first + job / tiles;
    out.split = cluster / jobs;
    out.column = int64_t{job % tiles} * Layout::kPlan.tile_d;
    out.rank = Layout::kCluster > 1 ? ptx::cluster_rank() : 0;
    out.begin = static_cast<int>(steps * out.split / call.splits);
    out.end = static_cast<int>(steps * (out.split + 1) / call.splits);
    return out;
  }
};

}  // namespace aim_fast::cuda::hopper
