// The rows of one CTA, as the forward and K1 of the backward both work on them.
//
//     Tiling    a warp owns 16 rows: their sums over all of H, and then the hidden block as fragments A of the second
//               product, stay in its registers
//     Flow      a ring of kStages slots that cp.async fills ahead: steps of kDepth columns of the input and of the
//               first weight, (K1: of kGroup columns of z,) then of kGroup columns of the output and of the second
//               weight. One barrier a step: behind it the slot before is free and the slot of the step is filled
//     Memory    slot = rows of the input [rows, kDepth] | weight, or z. What is on its way out is turned round in the
//               warp's own kilobyte of the first part, which the steps that do so leave unused
#pragma once

#include "cuda/ampere/pieces.h"
#include "cuda/ampere/rows_call.h"

namespace aim_fast::cuda::ampere {

constexpr int kStages = 3;
constexpr int kGroup = 32;           // columns of the hidden block, or of the output, that are treated at a time
constexpr int kStagingBytes = 1024;  // of a warp: [16, kGroup] of T or [8, kGroup] of fp32

// kHidden: H padded; what is beyond H is zero in shared memory and never stored.
template <int kHidden>
struct RowsShape {
  static constexpr int kDepth = kHidden <= 64 ? 64 : 32;
  static constexpr int kWeightBytes = kHidden * kDepth * 2;
  static_assert(kWeightBytes >= kHidden * kGroup * 2 && kWeightBytes >= kMaxRows * kGroup * 2,
                "a slot's second part holds a tile of either weight, or of z");
};

constexpr int kMaxThreads = kMaxRows / kWarpRows * kLanes;
// CTAs that a multiprocessor is to hold: what bounds their registers.
template <int kHidden>
constexpr int kRowsCtas = kHidden <= 128 ? 2 : 1;

template <class T>
constexpr Dtype kDtypeOf = std::is_same_v<T, ptx::BFloat16> ? Dtype::kBFloat16 : Dtype::kFloat16;

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
  using Shape = RowsShape<kHidden>;
  return kStages * (rows * Shape::kDepth * element_size(input) + Shape::kWeightBytes) + rows * sizeof(RowAddresses);
}

// Eight neighbouring floats of a tile of fp32.
template <int kPitch>
AIM_DEVICE void load_float_piece(const uint8_t* tile, int row, int piece, float (&values)[kPiece]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float4 chunk = *reinterpret_cast<const float4*>(tile + float_chunk_offset<kPitch>(row, piece * 2 + i));
    values[4 * i] = chunk.x, values[4 * i + 1] = chunk.y, values[4 * i + 2] = chunk.z, values[4 * i + 3] = chunk.w;
  }
}

template <class T, int kHidden, bool kBackward>
struct RowsTile {
  static constexpr int kDepth = RowsShape<kHidden>::kDepth;

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

  AIM_DEVICE RowsTile(const RowsCall& call, uint8_t* shared)
      : call(call),
        float_input(call.input.dtype == Dtype::kFloat32),
        first_row(blockIdx.x * (blockDim.x / kLanes * kWarpRows)),
        ring(shared) {
    const uint32_t rows = blockDim.x / kLanes * kWarpRows;
    input_bytes = rows * kDepth * (float_input ? 4 : 2);
    slot_bytes = input_bytes + RowsShape<kHidden>::kWeightBytes;
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

  // ---- the ring

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

  // ---- the products

  // sums += the slot's columns of the input times those of the first weight.
  AIM_DEVICE void multiply_input(float (&sums)[kHidden / 8][4], const uint8_t* slot) const {
    uint32_t a[kDepth / 16][4];
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k) {
      if (float_input) {
        load_rows_fragment_rounded<T, kDepth * 4>(a[k], slot, warp * kWarpRows, k * 16);
      } else {
        load_rows_fragment<kDepth * 2>(a[k], slot, warp * kWarpRows, k * 16);
      }
    }
    multiply<T, kBackward, kHidden, kDepth>(sums, a, slot + input_bytes);
  }

  // The second product of all output steps, and what is added to it.
  AIM_DEVICE void multiply_hidden(const uint32_t (&hidden)[kHidden / 16][4]) {
#pragma unroll 1
    for (int step = 0; step < output_steps; ++step) {
      uint8_t* slot = enter<Step::kOutput>();
      const int column = (first_group + step) * kGroup + lane % 4 * kPiece;
      const Addends addends = load_addends(column);
      float sums[kGroup / 8][4] = {};
      multiply<T, kBackward, kGroup, kHidden>(sums, hidden, slot + input_bytes);
      store_output(sums, addends, staging(slot), column);
    }
  }

  // ---- the output; a lane has 8 columns of a row in each half of the warp's rows

  // Loaded before the product whose sums they are added to.
  struct Addends {
    Piece input[2], residual[2], bias, scale;
  };

  AIM_DEVICE const RowAddresses& row_of_half(int half) const {
    return addresses[warp * kWarpRows + half * 8 + lane / 4];
  }

  AIM_DEVICE Addends load_addends(int column) const {
    Addends addends;
    if (column >= call.D) column = 0;  // not used
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const RowAddresses& row = row_of_half(half);
      if (call.skip) addends.input[half] = load_piece(row.input, call.input.dtype, column);
      if (!kBackward && call.residual) {
        addends.residual[half] = load_piece(row.residual, call.residual.dtype, column);
      }
    }
    if (!kBackward && call.b2) addends.bias = load_piece(call.b2.data, call.b2.dtype, column);
    if (!kBackward && call.wide_scale) addends.scale = load_piece(call.scale.data, call.scale.dtype, column);
    return addends;
  }

  AIM_DEVICE void store_output(const float (&sums)[kGroup / 8][4], const Addends& addends, uint8_t* staging,
                               int column) const {
    constexpr int kPitch = kGroup * 4;
    const float factor = kBackward ? 1.f : factor_of_all();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      __syncwarp();
#pragma unroll
      for (int j = 0; j < kGroup / 8; ++j) {
        const uint32_t to = float_chunk_offset<kPitch>(lane / 4, j * 2 + lane % 4 / 2) + lane % 2 * 8;
        ptx::store_float2(reinterpret_cast<float*>(staging + to), sums[j][2 * half], sums[j][2 * half + 1]);
      }
      __syncwarp();
      float values[kPiece];
      load_float_piece<kPitch>(staging, lane / 4, lane % 4, values);
      const RowAddresses& row = row_of_half(half);
      if (!row.inside || column >= call.D) continue;
      float other[kPiece];
      if constexpr (!kBackward) {
        if (call.b2) {
          unpack(addends.bias, call.b2.dtype, other);
          add(values, other);
        }
        scale_by(values, factor * row.scale);
        if (call.wide_scale) {
          unpack(addends.scale, call.scale.dtype, other);
#pragma unroll
          for (int i = 0; i < kPiece; ++i) values[i] *= other[i];
        }
        if (call.residual) {
          unpack(addends.residual[half], call.residual.dtype, other);
          add(values, other);
        }
      }
      if (call.skip) {
        unpack(addends.input[half], call.input.dtype, other);
        add(values, other);
      }
      store_piece(row.output, call.output.dtype, column, values);
    }
  }

  // alpha and a scale of one element.
  AIM_DEVICE float factor_of_all() const {
    return call.scale && !call.wide_scale ? call.alpha * load_float(call.scale.data, call.scale.dtype, 0) : call.alpha;
  }

  AIM_DEVICE static void add(float (&values)[kPiece], const float (&other)[kPiece]) {
#pragma unroll
    for (int i = 0; i < kPiece; ++i) values[i] += other[i];
  }
  AIM_DEVICE static void scale_by(float (&values)[kPiece], float factor) {
#pragma unroll
    for (int i = 0; i < kPiece; ++i) values[i] *= factor;
  }

  AIM_DEVICE uint8_t* staging(uint8_t* slot) const { return slot + warp * kStagingBytes; }

  // ---- the hidden block

  // Sums of a group of columns, rounded, as fragments A of the second product: two neighbouring sums [16, 8] make one.
  AIM_DEVICE static void to_fragments(const float (&values)[16], uint32_t (&fragments)[2][4]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) fragments[i / 4][i % 4] = ptx::pack<T>(values[2 * i], values[2 * i + 1]);
  }

  // Stores a group of columns [16, kGroup] of a matrix [M, H] in T, given as two fragments A.
  AIM_DEVICE void store_hidden(char* matrix, const uint32_t (&fragments)[2][4], uint8_t* staging,
                               int first_column) const {
    constexpr int kPitch = kGroup * 2;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t to = chunk_offset<kPitch>(lane / 4 + i % 2 * 8, i / 2) + lane % 4 * 4;
      *reinterpret_cast<uint32_t*>(staging + to) = fragments[i / 4][i % 4];
    }
    __syncwarp();
    const int column = first_column + lane % 4 * kPiece;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 piece =
          *reinterpret_cast<const uint4*>(staging + chunk_offset<kPitch>(half * 8 + lane / 4, lane % 4));
      if (!row_of_half(half).inside || column >= call.H) continue;
      const int64_t row = first_row + warp * kWarpRows + half * 8 + lane / 4;
      *reinterpret_cast<uint4*>(matrix + 2 * (row * call.H + column)) = piece;
    }
  }

  // The warp's rows of an fp32 slot, rounded, into the matrix [M, D] in T.
  AIM_DEVICE void store_rounded(const uint8_t* slot, int first_column) const {
    constexpr int kPitch = kDepth * 4, kPieces = kDepth / kPiece;
#pragma unroll 1
    for (int i = 0; i < kWarpRows * kPieces / kLanes; ++i) {
      const int row = warp * kWarpRows + (lane + i * kLanes) / kPieces, piece = lane % kPieces;
      const int column = first_column + piece * kPiece;
      if (!addresses[row].inside || column >= call.D) continue;
      float values[kPiece];
      load_float_piece<kPitch>(slot, row, piece, values);
      store_piece(call.rounded + int64_t{first_row + row} * call.D * 2, kDtypeOf<T>, column, values);
    }
  }
};

}  // namespace aim_fast::cuda::ampere
