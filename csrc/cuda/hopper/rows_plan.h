// The compile-time half of a row kernel's plan: how a CTA's shared memory and registers are shared out.
//
//     stages     [input rows | weights, or z of the backward], a ring that TMA fills
//     staging    two tiles of 64 rows by 64 columns a consumer: rows on their way out, a residual, fp32 rows rounded
//     addresses  of the result's and the residual's rows, where those have no tensor map
//     barriers   full and empty, one of each a stage
#pragma once

#include <algorithm>

#include "cuda/hopper/rows_call.h"

namespace aim_fast::cuda::hopper {

template <class T_, int H_, bool kBackward_, bool kFloatInput_, int kConsumers_>
struct RowsPlan {
  using T = T_;
  static constexpr int H = H_;
  static constexpr bool kBackward = kBackward_;
  static constexpr bool kFloatInput = kFloatInput_;  // x or dy in fp32: two boxes of 32 columns a consumer
  static constexpr int kConsumers = kConsumers_;     // at most; a launch may have fewer
  static constexpr int kThreads = 128 * (kConsumers + 1);

  static constexpr int kChunks = H / kColumns;
  static constexpr int kInputBytes = (kFloatInput ? 2 : 1) * kTileBytes;  // of one consumer
  static constexpr int kWeightBytes = H * 128;
  // K1's tiles of z come where the weights of other steps are, so that the input rows beside them survive.
  static constexpr int kOtherBytes = kBackward ? std::max(kWeightBytes, kConsumers* kTileBytes) : kWeightBytes;
  static constexpr int kStageBytes = kConsumers * kInputBytes + kOtherBytes;
  static constexpr int kStagingBytes = kConsumers * 2 * kTileBytes;
  static constexpr int kAddressBytes = kConsumers * kGroupRows * 2 * 8;
  static constexpr int kSharedLimit = 227 << 10;
  // Four cover the latency of DRAM with room to spare (ROWS.md); wide hidden blocks, fp32 rows and three consumers
  // leave fewer.
  static constexpr int kStages = std::min(4, (kSharedLimit - kStagingBytes - kAddressBytes - 4 * 16) / kStageBytes);

  static constexpr int kStaging = kStages * kStageBytes;
  static constexpr int kAddresses = kStaging + kStagingBytes;
  static constexpr int kFull = kAddresses + kAddressBytes;
  static constexpr int kEmpty = kFull + 8 * kStages;
  static constexpr int kSharedBytes = kEmpty + 8 * kStages;

  // What setmaxnreg gives each role.
  static constexpr int kRegisters = kConsumers == 3 ? 160 : 232;
  static constexpr int kProducerRegisters = kConsumers == 3 ? 32 : 40;

  static_assert(H % kColumns == 0 && H <= 320, "the hidden block is at most 160 accumulators a thread");
  static_assert(kStages >= 2, "the producer has to run ahead of the consumers");
  static_assert(kStageBytes % 1024 == 0 && kStaging % 1024 == 0, "the swizzle repeats every 1024 bytes");
  // The pool is what the launch allocated, 65536 registers in units of 8 a thread; more would be waited for for ever.
  static_assert(kConsumers * kRegisters + kProducerRegisters <= (kConsumers + 1) * (65536 / kThreads / 8 * 8));
  static_assert(kConsumers < 3 || H <= 192, "ptxas takes no m64n256 at 128 registers a thread (C7602)");
};

}  // namespace aim_fast::cuda::hopper
