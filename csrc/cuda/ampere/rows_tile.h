// What the forward and K1 of the backward do alike with the rows of a CTA: both products, and the way out.
//
//     Tiling    a warp owns 16 rows: their sums over all of H, and then the hidden block as fragments A of the second
//               product, stay in its registers
//     Output    turned round in the warp's own kilobyte of the slot's first part, which the steps that do so leave
//               unused, so that memory is read and written by 16 bytes and rows of 64 or 128
#pragma once

#include "cuda/ampere/rows_ring.h"

namespace aim_fast::cuda::ampere {

constexpr int kStagingBytes = 1024;  // of a warp: [16, kGroup] of T or [8, kGroup] of fp32

template <class T>
constexpr Dtype kDtypeOf = std::is_same_v<T, ptx::BFloat16> ? Dtype::kBFloat16 : Dtype::kFloat16;

template <class T, int kHidden, bool kBackward>
struct RowsTile : RowsRing<T, kHidden, kBackward> {
  using Ring = RowsRing<T, kHidden, kBackward>;
  using Ring::call, Ring::warp, Ring::lane, Ring::float_input, Ring::first_row, Ring::addresses;
  using Ring::Ring;

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
    multiply<T, kBackward, kHidden, kDepth>(sums, a, slot + this->input_bytes);
  }

  // The second product of all output steps, and what is added to it.
  AIM_DEVICE void multiply_hidden(const uint32_t (&hidden)[kHidden / 16][4]) {
#pragma unroll 1
    for (int step = 0; step < this->output_steps; ++step) {
      uint8_t* slot = this->template enter<Step::kOutput>();
      const int column = (this->first_group + step) * kGroup + lane % 4 * kPiece;
      const Addends addends = load_addends(column);
      float sums[kGroup / 8][4] = {};
      multiply<T, kBackward, kGroup, kHidden>(sums, hidden, slot + this->input_bytes);
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
#pragma unroll
        for (int i = 0; i < kPiece; ++i) values[i] *= factor * row.scale;
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
