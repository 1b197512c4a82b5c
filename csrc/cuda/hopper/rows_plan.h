// The compile-time half of a row kernel's plan: how a CTA's shared memory and registers are shared out.
//
//     stages     [input rows | weights, or z of the backward], a ring that TMA fills
//     staging    tiles of 64 rows by 64 columns for each consumer: rows on their way out, a residual, fp32 rows rounded
//     addresses  of the result's and the residual's rows, where those have no tensor map
//     barriers   full and empty, one of each a stage
#pragma once

#include <algorithm>

#include "cuda/hopper/rows_call.h"

namespace aim_fast::cuda::hopper {

// Where three consumers have registers enough: at this H, with rows of 16 bits, in calls that are plain (is_plain).
constexpr int kThreeConsumersH = 192;

template <class T_, int H_, bool kBackward_, bool kFloatInput_, int kConsumers_ = 2>
struct RowsPlan {
  using T = T_;
  static constexpr int H = H_;
  static constexpr bool kBackward = kBackward_;
  static constexpr bool kFloatInput = kFloatInput_;  // x or dy in fp32: two boxes of 32 columns a consumer
  static constexpr int kConsumers = kConsumers_;     // of two a launch may have fewer
  static constexpr int kThreads = 128 * (kConsumers + 1);

  static constexpr int kChunks = H / kColumns;
  static constexpr int kInputBytes = (kFloatInput ? 2 : 1) * kTileBytes;  // of one consumer
  static constexpr int kWeightBytes = H * 128;
  // K1's tiles of z come where the weights of other steps are, so that the input rows beside them survive.
  static constexpr int kOtherBytes = kBackward ? std::max(kWeightBytes, kConsumers* kTileBytes) : kWeightBytes;
  static constexpr int kStageBytes = kConsumers * kInputBytes + kOtherBytes;
  static constexpr int kTurns = kFloatInput ? 2 : 1;  // a group's warps may be a step apart when they round
  static constexpr int kStagingBytes = kConsumers * kTurns * kTileBytes;
  static constexpr int kAddressBytes = kConsumers * kGroupRows * 2 * 8;
  static constexpr int kSharedLimit = 227 << 10;
  // With more stages than steps (D = 256 has four) the skip would find none of its tiles in the ring.
  static constexpr int kMaxStages = H == 64 ? 4 : 6;
  static constexpr int kStages =
      std::min(kMaxStages, (kSharedLimit - kStagingBytes - kAddressBytes - kMaxStages * 16) / kStageBytes);

  static constexpr int kStaging = kStages * kStageBytes;
  static constexpr int kAddresses = kStaging + kStagingBytes;
  static constexpr int kFull = kAddresses + kAddressBytes;
  static constexpr int kEmpty = kFull + 8 * kStages;
  static constexpr int kSharedBytes = kEmpty + 8 * kStages;

  // For no more than a block at a time in the epilogue.
  static constexpr bool kFewRegisters = kConsumers == 3;

  // One branch over all activations for a whole block, so that its instructions come one after the other. With one for
  // every eight values the forward takes 1.05 times as long on an H200 at H = 192, 1.35 times at 256. Wider ones, and
  // three consumers, would spill registers: there the GELU has a branch of its own, and the others one for every eight.
  static constexpr bool kOneBranch = !kFewRegisters && (H < 256 || (H == 256 && (kBackward || !kFloatInput)));

  // What setmaxnreg gives each role.
  static constexpr int kRegisters = kFewRegisters ? 160 : 232, kProducerRegisters = kFewRegisters ? 32 : 40;

  static_assert(kConsumers == 2 || (kConsumers == 3 && H == kThreeConsumersH && !kFloatInput));
  static_assert(H % kColumns == 0 && H <= 320, "the hidden block is at most 160 accumulators a thread");
  static_assert(kStages >= 2, "the producer has to run ahead of the consumers");
  static_assert(kStageBytes % 1024 == 0 && kStaging % 1024 == 0, "the swizzle repeats every 1024 bytes");
  // The pool is what the launch allocated, 65536 registers in units of 8 a thread; more would be waited for for ever.
  static_assert(kConsumers * kRegisters + kProducerRegisters <= (kConsumers + 1) * (65536 / kThreads / 8 * 8));
};

}  // namespace aim_fast::cuda::hopper
