// Tiles in shared memory: where their 16-byte chunks lie, how they are filled by cp.async, and how ldmatrix takes
// fragments of mma.m16n8k16 out of them.
//
// A tile is row-major with `kPitch` bytes a row. Chunks are permuted within 128 bytes so that the 8 rows of a matrix
// of ldmatrix, and the neighbours that a warp writes at once, fall on different banks.
#pragma once

#include "cuda/pieces.h"
#include "cuda/ptx.h"

namespace aim_fast::cuda::ampere {

constexpr int kLanes = 32;
constexpr size_t kMaxShared = 99 << 10;  // what every GPU from sm_80 on gives a CTA
constexpr int kChunkBytes = 16;
constexpr int kChunk = 8;  // 16-bit elements in 16 bytes

// Byte of a chunk in a tile of 16-bit elements; kPitch is 64 or a multiple of 128.
template <int kPitch>
AIM_DEVICE uint32_t chunk_offset(uint32_t row, uint32_t chunk) {
  static_assert(kPitch == 64 || kPitch % 128 == 0);
  const uint32_t permuted = kPitch == 64 ? row / 2 % 4 : row % 8;
  return row * kPitch + (chunk ^ permuted) * kChunkBytes;
}

// A chunk an even number of chunks to the right of one with an even or odd place in its first pair.
template <int kPitch>
AIM_DEVICE uint32_t moved_right(uint32_t offset, int chunks) {
  return (offset ^ (chunks % 8 * kChunkBytes)) + chunks / 8 * 128;
}

// Byte of a chunk (four floats) in a tile of fp32. Rows are read by quads of lanes with 8 bytes each, and by single
// lanes with 32 bytes: pairs of chunks of four rows lie side by side, and in odd rows they are swapped.
template <int kPitch>
AIM_DEVICE uint32_t float_chunk_offset(uint32_t row, uint32_t chunk) {
  static_assert(kPitch % 128 == 0);
  return row * kPitch + (chunk ^ (row % 4 * 2 + row % 2)) * kChunkBytes;
}

// A weight as it lies in memory: row-major, in the compute dtype.
struct Matrix {
  const char* data;
  int rows, columns;
};

// The part [kRows, kColumns] of a matrix that begins at (first_row, first_column); zero beyond the matrix.
template <int kRows, int kColumns>
AIM_DEVICE void copy_tile(uint8_t* tile, const Matrix& matrix, int first_row, int first_column) {
  constexpr int kChunks = kColumns / kChunk;
  for (int i = threadIdx.x; i < kRows * kChunks; i += blockDim.x) {
    const int row = i / kChunks, chunk = i % kChunks;
    const int from_row = first_row + row, from_column = first_column + chunk * kChunk;
    const bool inside = from_row < matrix.rows && from_column < matrix.columns;
    const int64_t from = inside ? int64_t{from_row} * matrix.columns + from_column : 0;
    ptx::cp_async_16(tile + chunk_offset<kColumns * 2>(row, chunk), matrix.data + 2 * from, inside);
  }
}

// The lane's part of a fragment A [16, 16] whose rows are rows of a tile.
template <int kPitch>
AIM_DEVICE void load_rows_fragment(uint32_t (&a)[4], const uint8_t* tile, int row, int column) {
  const int lane = threadIdx.x % kLanes;
  ptx::ldmatrix_x4(a, tile + chunk_offset<kPitch>(row + lane % 16, column / kChunk + lane / 16));
}

// The same from a tile of fp32, rounded to T.
template <class T, int kPitch>
AIM_DEVICE void load_rows_fragment_rounded(uint32_t (&a)[4], const uint8_t* tile, int row, int column) {
  const int lane = threadIdx.x % kLanes;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int from_row = row + lane / 4 + i % 2 * 8, from_column = column + lane % 4 * 2 + i / 2 * 8;
    const uint32_t offset = float_chunk_offset<kPitch>(from_row, from_column / 4) + from_column % 4 * 4;
    const float2 pair = *reinterpret_cast<const float2*>(tile + offset);
    a[i] = ptx::pack<T>(pair.x, pair.y);
  }
}

// sums [16, kColumns] += a [16, kDepth] b [kDepth, kColumns] for one warp.
//
// The tile holds b^T [kColumns, kDepth], or with kDepthFirst b itself. Sums are in the fragments of mma.m16n8k16.
template <class T, bool kDepthFirst, int kColumns, int kDepth>
AIM_DEVICE void multiply(float (&sums)[kColumns / 8][4], const uint32_t (&a)[kDepth / 16][4], const uint8_t* tile) {
  constexpr int kPitch = 2 * (kDepthFirst ? kColumns : kDepth);
  const int lane = threadIdx.x % kLanes;
  // The four matrices of a load are (columns 0..7, depth 0..7), (0..7, 8..15), (8..15, 0..7), (8..15, 8..15).
  const uint32_t first = kDepthFirst ? chunk_offset<kPitch>(lane % 16, lane / 16)
                                     : chunk_offset<kPitch>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k) {
#pragma unroll
    for (int j = 0; j < kColumns / 16; ++j) {
      uint32_t b[4];
      if constexpr (kDepthFirst) {
        ptx::ldmatrix_x4_trans(b, tile + moved_right<kPitch>(first, 2 * j) + k * 16 * kPitch);
      } else {
        ptx::ldmatrix_x4(b, tile + moved_right<kPitch>(first, 2 * k) + j * 16 * kPitch);
      }
      ptx::mma<T>(sums[2 * j], a[k], b[0], b[1]);
      ptx::mma<T>(sums[2 * j + 1], a[k], b[2], b[3]);
    }
  }
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

}  // namespace aim_fast::cuda::ampere
