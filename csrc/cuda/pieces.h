// Eight neighbouring elements of a row, of any of the three dtypes, moved in pieces of 16 bytes. The branches on the
// dtype are the same for the whole grid.
#pragma once

#include "cuda/vectors.h"

namespace aim_fast::cuda {

constexpr int kPiece = 8;

// As loaded, so that a load may be issued long before its values are used.
struct Piece {
  uint4 raw[2];  // the second for fp32 alone
};

AIM_DEVICE Piece load_piece(const char* row, Dtype dtype, int64_t column) {
  Piece piece;
  const uint4* from = reinterpret_cast<const uint4*>(row + column * element_size(dtype));
  piece.raw[0] = from[0];
  if (dtype == Dtype::kFloat32) piece.raw[1] = from[1];
  return piece;
}

AIM_DEVICE void unpack_pair(uint32_t pair, Dtype dtype, float& low, float& high) {
  low = dtype == Dtype::kBFloat16 ? ptx::low<ptx::BFloat16>(pair) : ptx::low<ptx::Half>(pair);
  high = dtype == Dtype::kBFloat16 ? ptx::high<ptx::BFloat16>(pair) : ptx::high<ptx::Half>(pair);
}

AIM_DEVICE void unpack(const Piece& piece, Dtype dtype, float (&values)[kPiece]) {
  const uint32_t words[8] = {piece.raw[0].x, piece.raw[0].y, piece.raw[0].z, piece.raw[0].w,
                             piece.raw[1].x, piece.raw[1].y, piece.raw[1].z, piece.raw[1].w};
  if (dtype == Dtype::kFloat32) {
#pragma unroll
    for (int i = 0; i < kPiece; ++i) memcpy(&values[i], &words[i], 4);
  } else {
#pragma unroll
    for (int i = 0; i < kPiece / 2; ++i) unpack_pair(words[i], dtype, values[2 * i], values[2 * i + 1]);
  }
}

AIM_DEVICE void store_piece(char* row, Dtype dtype, int64_t column, const float (&values)[kPiece]) {
  char* to = row + column * element_size(dtype);
  if (dtype == Dtype::kFloat32) {
    reinterpret_cast<float4*>(to)[0] = {values[0], values[1], values[2], values[3]};
    reinterpret_cast<float4*>(to)[1] = {values[4], values[5], values[6], values[7]};
  } else {
    *reinterpret_cast<uint4*>(to) = {pack_as(dtype, values[0], values[1]), pack_as(dtype, values[2], values[3]),
                                     pack_as(dtype, values[4], values[5]), pack_as(dtype, values[6], values[7])};
  }
}

}  // namespace aim_fast::cuda
