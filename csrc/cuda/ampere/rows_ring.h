// The ring of slots in shared memory through which everything that the row kernels multiply comes, and where the rows
// of a CTA lie.
//
//     Steps     kDepth columns of the input and of the first weight, (K1: kGroup columns of z,) then kGroup columns of
//               the output and of the second weight
//     Flow      cp.async fills kStages - 1 slots ahead. One barrier a step: behind it the slot before is free and the
//               slot of the step is filled
//     Memory    slot = rows of the input [rows, kDepth] in their own dtype | weight, or z
#pragma once

#include <algorithm>

#include "cuda/ampere/rows_call.h"
#include "cuda/ampere/tiles.h"
#include "cuda/vectors.h"

namespace aim_fast::cuda::ampere {

constexpr int kStages = 3;
constexpr int kGroup = 32;  // columns of the hidden block, or of the output, that are treated at a time

constexpr int kDepth = 32;  // columns of the input that are multiplied at a time

// Of a slot, behind the input's rows: a tile of either weight, or of z. kHidden is H padded; what is beyond H is zero
// in shared memory and never stored.
template <int kHidden>
constexpr uint32_t kWeightBytes = std::max(kHidden * std::max(kDepth, kGroup), kMaxRows* kGroup) * 2;

constexpr int kMaxThreads = kMaxRows / kWarpRows * kLanes;
// CTAs that a multiprocessor is to hold: what bounds their registers.
template <int kHidden>
constexpr int kRowsCtas = kHidden <= 128 ? 2 : 1;

// The kinds of steps, in their order.
enum class Step { kInput, kZ, kOutput };

// What is known of each row before anything else.
struct RowAddresses {
  const char *input, *residual;
  char* output;
  float scale;
  uint32_t inside;  // whether it is a row of the matrix; the addresses are valid in any case
};

template <int kHidden>
constexpr size_t rows_shared_bytes(int rows, Dtype input) {
  return kStages * (rows * kDepth * element_size(input) + kWeightBytes<kHidden>)+rows * sizeof(RowAddresses);
}

template <class T, int kHidden, bool kBackward>
struct RowsRing {
  const RowsCall& call;
  const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const bool float_input;
  const uint32_t first_row;  // of the CTA
  uint32_t input_bytes;      // of a slot, before its weight
  uint32_t slot_bytes;
  uint8_t* ring;
  RowAddresses* addresses;  // of the CTA's rows
  int filled = 0;           // steps of which the loads have been issued
  int filling = 0;          // the slot that is filled next
  int entered = 0;          // the slot of the next step

  // Which steps there are, in this order; and the first group of the output's columns.
  int input_steps, z_steps, output_steps, first_group;
  bool multiplies_input;

  AIM_DEVICE RowsRing(const RowsCall& call, uint8_t* shared)
      : call(call),
        float_input(call.input.dtype == Dtype::kFloat32),
        first_row(blockIdx.x * (blockDim.x / kLanes * kWarpRows)),
        ring(shared) {
    const uint32_t rows = blockDim.x / kLanes * kWarpRows;
    input_bytes = rows * kDepth * (float_input ? 4 : 2);
    slot_bytes = input_bytes + kWeightBytes<kHidden>;
    addresses = reinterpret_cast<RowAddresses*>(shared + kStages * slot_bytes);
    find_rows(rows);
  }

  AIM_DEVICE void find_rows(uint32_t rows) const {
    if (threadIdx.x < rows) {
      const uint32_t m = first_row + threadIdx.x, row = m < call.M ? m : call.M - 1;
      RowAddresses& to = addresses[threadIdx.x];
      to.input = call.input.row(row);
      to.residual = call.residual ? call.residual.row(row) : nullptr;
      to.output = call.output ? call.output.row(row) : nullptr;
      to.scale = call.row_scale ? load_float(call.row_scale.row(row), call.row_scale.dtype, 0) : 1.f;
      to.inside = m < call.M;
    }
    __syncthreads();
  }

  // The output's columns are shared out over the CTAs of blockIdx.y; the first of them stores what is not the output.
  AIM_DEVICE bool is_first_part() const { return blockIdx.y == 0; }

  AIM_DEVICE void begin(bool reads_input, bool multiplies, bool reads_z) {
    const int groups = call.output ? (call.D + kGroup - 1) / kGroup : 0, part = (groups + gridDim.y - 1) / gridDim.y;
    first_group = static_cast<int>(blockIdx.y) * part;
    output_steps = groups - first_group < part ? groups - first_group : part;
    output_steps = output_steps < 0 ? 0 : output_steps;
    input_steps = reads_input ? (call.D + kDepth - 1) / kDepth : 0;
    z_steps = reads_z ? (call.H + kGroup - 1) / kGroup : 0;
    multiplies_input = multiplies;
#pragma unroll 1
    for (int i = 0; i < kStages - 1; ++i) fill<Step::kInput>();
  }

  // Issues the loads of a step that comes no sooner than those of `kFrom`; each is one group, those past the end empty.
  template <Step kFrom>
  AIM_DEVICE void fill() {
    uint8_t* slot = ring + filling * slot_bytes;
    uint8_t* weight = slot + input_bytes;
    const int input = filled, z = input - input_steps, output = z - z_steps;
    if (kFrom == Step::kInput && z < 0) {
      fill_input_step(slot, weight, input * kDepth);
    } else if (kBackward && kFrom <= Step::kZ && output < 0) {
      fill_z(weight, z * kGroup);
    } else if (output < output_steps) {
      const int column = (first_group + output) * kGroup;
      if constexpr (kBackward) {
        copy_tile<kHidden, kGroup>(weight, call.second, 0, column);
      } else {
        copy_tile<kGroup, kHidden>(weight, call.second, column, 0);
      }
    }
    ptx::cp_async_commit();
    ++filled;
    filling = filling + 1 == kStages ? 0 : filling + 1;
  }

  // Waits for the next step, one of kind `kStep`, and sets the loads going of the step that gets the slot before its.
  template <Step kStep>
  AIM_DEVICE uint8_t* enter() {
    ptx::cp_async_wait<kStages - 2>();
    __syncthreads();
    fill<kStep>();
    uint8_t* slot = ring + entered * slot_bytes;
    entered = entered + 1 == kStages ? 0 : entered + 1;
    return slot;
  }

  AIM_DEVICE void fill_input_step(uint8_t* slot, uint8_t* weight, int column) const {
    if (float_input) {
      fill_input<float>(slot, column);
    } else {
      fill_input<T>(slot, column);
    }
    if (!multiplies_input) return;
    if constexpr (kBackward) {
      copy_tile<kDepth, kHidden>(weight, call.first, column, 0);
    } else {
      copy_tile<kHidden, kDepth>(weight, call.first, 0, column);
    }
  }

  // The warp's rows of the input, as they are.
  template <class Input>
  AIM_DEVICE void fill_input(uint8_t* tile, int first_column) const {
    constexpr int kPitch = kDepth * sizeof(Input), kChunks = kPitch / kChunkBytes;
#pragma unroll
    for (int i = 0; i < kWarpRows * kChunks / kLanes; ++i) {
      const int row = warp * kWarpRows + (lane + i * kLanes) / kChunks, chunk = lane % kChunks;
      const int column = first_column + chunk * (kChunkBytes / int{sizeof(Input)});
      const bool inside = addresses[row].inside && column < call.D;
      uint32_t to;
      if constexpr (sizeof(Input) == 4) {
        to = float_chunk_offset<kPitch>(row, chunk);
      } else {
        to = chunk_offset<kPitch>(row, chunk);
      }
      ptx::cp_async_16(tile + to, addresses[row].input + (inside ? column * int64_t{sizeof(Input)} : 0), inside);
    }
  }

  AIM_DEVICE void fill_z(uint8_t* tile, int first_column) const {
    constexpr int kChunks = kGroup / kChunk;
#pragma unroll
    for (int i = 0; i < kWarpRows * kChunks / kLanes; ++i) {
      const int row = warp * kWarpRows + (lane + i * kLanes) / kChunks, chunk = lane % kChunks;
      const int column = first_column + chunk * kChunk;
      const bool inside = addresses[row].inside && column < call.H;
      const int64_t from = inside ? int64_t{first_row + row} * call.H + column : 0;
      ptx::cp_async_16(tile + chunk_offset<kGroup * 2>(row, chunk), call.z + 2 * from, inside);
    }
  }
};

}  // namespace aim_fast::cuda::ampere
