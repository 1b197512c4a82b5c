// Packed weights that outlive a call: a buffer that says for what it is good.
//
//   header, 64 bytes | panels of w1 and w2 as Kernels::pack lays them
#pragma once

#include "kernels.h"

namespace aim_fast {

// Bytes of the buffer for the weights, D, H and compute dtype of p.
int64_t prepacked_bytes(const ForwardParams& p);

// Fills the buffer, which is aligned to 64, for the instruction set in use.
void prepack(const ForwardParams& p, char* buffer);

// The panels in a buffer of that many bytes, or null where it was made for another instruction set, shape or dtype, or
// from other weights as far as 64 elements of each tell.
const char* prepacked_panels(const ForwardParams& p, const char* buffer, int64_t bytes);

}  // namespace aim_fast
