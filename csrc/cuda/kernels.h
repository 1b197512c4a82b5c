// The CUDA kernels as the binding sees them, and what each family of them gives. Knows no torch and no CUDA headers.
//
//     forward    y and z in one kernel, or with the hidden block in memory in two
//     backward   K1, by rows: dz, dx, and h for K2;  K2, by columns: partial sums of dw1, dw2, db1, db2;  their sum
//
// Every function that launches returns a cudaError_t, 0 for success, and neither waits nor allocates.
#pragma once

#include <cstdint>

#include "common/params.h"

namespace aim_fast::cuda {

// Whose kernels run: products in tiles, each by a launch, in fp32 and in 16 bits; or of 16 bits both products by rows
// in one, with mma.sync from sm_80 on, and with wgmma and TMA on sm_90a alone.
enum class Family : int32_t { kTiles, kAmpere, kHopper };

struct Device {
  Family family;
  int sms;        // multiprocessors
  void* stream;   // a cudaStream_t of the current device
  bool early;     // whether launches may begin before the one ahead of them has ended
  int plan = -1;  // one of the family's plans for the row kernels; -1: the one that its rule picks
};

// What passes from kernel to kernel; all on the device.
struct Intermediates {
  char* dz = nullptr;     // [M, H] in the compute dtype: dh * act'(z), every scale included; null: nobody needs it
  char* h = nullptr;      // [M, H] in the compute dtype: row_scale * act(z); of the forward act(z)
  char* x = nullptr;      // [M, D] x in the compute dtype, where x itself is not and each product reads it
  char* dy = nullptr;     // [M, D] dy in the compute dtype, where dy itself is not and it is read so
  int splits = 0;         // ranges of rows that K2 sums one by one; 0: there is nothing to sum up
  float* dw = nullptr;    // [splits, 2, H, D]: dz^T x, and h^T dy
  float* sums = nullptr;  // [splits, H + D]: column sums of dz, and of row_scale * dy
};

// Which column sums and products K2 is to form.
struct Wanted {
  bool dw1 = false, dw2 = false, db1 = false, db2 = false;
};

// Whether every row begins on 16 bytes, as vectors of that size do.
inline bool begins_on_vectors(const Rows& rows) {
  bool all = reinterpret_cast<uintptr_t>(rows.data) % 16 == 0;
  for (int i = 0; i < rows.ndim; ++i) all = all && rows.stride[i] * element_size(rows.dtype) % 16 == 0;
  return all;
}

// One family's part. The weights are contiguous and in the compute dtype, and w2 of K1 has the scale [D] in it; rows
// are as `takes_rows` wants them. A null result is not computed.
struct Kernels {
  // Whether the row kernels take a tensor as it lies; one that they do not is copied to contiguous rows first.
  bool (*takes_rows)(const Rows& rows, int64_t columns);
  // How many plans there are for D, H and dtype of p, on which alone they depend; 0: the call cannot be taken.
  int (*plans)(const Problem& p, const Device& device, bool backward);
  // Whether each product is a launch: x and dy are then read in the compute dtype, and h of the forward, and dz where
  // dx is wanted, go through memory.
  bool by_products;
  int (*forward)(const ForwardParams& p, const Intermediates& between, const Device& device);
  int (*backward_rows)(const BackwardParams& p, const Intermediates& between, const Device& device);
  // How many ranges of rows K2 has; 0: K2 of this call, given as it came, writes the gradients themselves.
  int (*splits)(const BackwardParams& call, const Wanted& wanted, const Device& device);
  int (*backward_columns)(const BackwardParams& p, const Wanted& wanted, const Intermediates& between,
                          const Device& device);
};

extern const Kernels tiles_kernels;
extern const Kernels ampere_kernels;
extern const Kernels hopper_kernels;  // not there where nothing was compiled for sm_90a

// Null where the family was not compiled.
const Kernels* kernels_of(Family family);

// The whole calls. Tensors of p may have any dtype and strides of the contract; what a family cannot read as it lies is
// brought into its form in the workspace by small kernels. The workspace is aligned to 1024 bytes.
int64_t forward_workspace(const ForwardParams& p, const Device& device);
int forward(const ForwardParams& p, const Device& device, char* workspace);
int64_t backward_workspace(const BackwardParams& p, const Device& device);
int backward(const BackwardParams& p, const Device& device, char* workspace);

}  // namespace aim_fast::cuda
