// A consumer warp's one or two buffers of 16 rows by 64 columns in shared memory, in the layout of the 128-byte
// swizzle: what it writes leaves through them, and a residual's rows come in through them. Those of a group's warps
// that have the same turn are one tile of 64 rows, which wgmma can read.
#pragma once

#include "cuda/hopper/rows_plan.h"
#include "cuda/rows.h"

namespace aim_fast::cuda::hopper {

// Byte offset in such a block of what this lane addresses of columns 16 j to 16 j + 15, for ldmatrix and stmatrix.
AIM_DEVICE uint32_t fragment(int lane, int j) {
  const int row = lane % 16, chunk = 2 * j + lane / 16;
  return row * 128 + ((chunk ^ (row & 7)) << 4);
}

template <int kTurns>
class Staging {
 public:
  // buffers: this warp's first, kTileBytes before its second if there are two turns; addresses: [2, 16], of the
  // result's rows and of the residual's.
  AIM_DEVICE Staging(uint8_t* buffers, char** addresses, int lane)
      : buffers_(buffers), addresses_(addresses), lane_(lane) {}

  // Finds the rows that have no tensor map, for a new block; rows beyond the last stand for it.
  AIM_DEVICE void locate(const DeviceRows& out, const DeviceRows& residual, uint32_t row, uint32_t M) {
    row_ = row;
    M_ = M;
    __syncwarp();  // the block before is done with
    const DeviceRows& rows = lane_ < kWarpRows ? out : residual;
    if (rows) addresses_[lane_] = rows.row(std::min(row + lane_ % kWarpRows, M - 1));
    __syncwarp();
  }
  AIM_DEVICE char* out_row(int row) const { return addresses_[row]; }
  AIM_DEVICE const char* residual_row(int row) const { return addresses_[kWarpRows + row]; }
  AIM_DEVICE bool inside(int row) const { return row_ + row < M_; }

  // Waits until the buffer whose turn it is has left.
  AIM_DEVICE void acquire() {
    if (lane_ == 0) ptx::bulk_wait_read<kTurns - 1>();
    __syncwarp();
  }
  AIM_DEVICE void put(int j, const uint32_t (&r)[4]) {
    ptx::stmatrix_x4(buffers_ + turn_ + fragment(lane_, j), r[0], r[1], r[2], r[3]);
  }
  AIM_DEVICE void get(int j, uint32_t (&r)[4]) const { ptx::ldmatrix_x4(r, buffers_ + turn_ + fragment(lane_, j)); }
  // In shared memory, of the buffer whose turn it is.
  AIM_DEVICE uint32_t address() const { return ptx::shared_address(buffers_ + turn_); }
  // The turn passes, and what was sent in it becomes a group; an empty one too, as `acquire` counts one to each turn.
  AIM_DEVICE void next() {
    if (lane_ == 0) ptx::bulk_commit();
    if constexpr (kTurns == 2) turn_ ^= kTileBytes;
  }

  // Sends the block to this column by TMA, which leaves out rows beyond the last.
  template <ptx::Keep kKeep = ptx::Keep::kNormal>
  AIM_DEVICE void send(const ptx::TensorMap& map, int column) {
    ptx::fence_proxy_async();
    __syncwarp();
    if (lane_ == 0) ptx::tma_store<kKeep>(&map, address(), column, row_);
    next();
  }

  // Writes the block, 16-bit elements, row by row: 128 contiguous bytes of four rows an instruction.
  AIM_DEVICE void write(int column) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 4 * i + lane_ / 8;
      const uint4 v = *reinterpret_cast<const uint4*>(buffers_ + turn_ + swizzled(row));
      if (inside(row)) *reinterpret_cast<uint4*>(out_row(row) + 2 * column + lane_ % 8 * 16) = v;
    }
    next();
  }

  // Begins to fetch a block of a residual of 16-bit elements into the buffer whose turn it is.
  AIM_DEVICE void fetch_residual(int column) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 4 * i + lane_ / 8;
      ptx::cp_async_16(buffers_ + turn_ + swizzled(row), residual_row(row) + 2 * column + lane_ % 8 * 16);
    }
    ptx::cp_async_commit();
  }

 private:
  AIM_DEVICE uint32_t swizzled(int row) const { return row * 128 + ((lane_ % 8 ^ (row & 7)) << 4); }

  uint8_t* buffers_;
  char** addresses_;
  int lane_;
  uint32_t turn_ = 0;
  uint32_t row_ = 0, M_ = 0;
};

}  // namespace aim_fast::cuda::hopper
