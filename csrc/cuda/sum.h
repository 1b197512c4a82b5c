// The last part of the backward: sums the partial results of the ranges of rows in order, scales them, and writes the
// gradients of the parameters in their own dtypes.
#pragma once

#include "cuda/kernels.h"

namespace aim_fast::cuda {

// dw1, db1, dw2, db2 and dscale of p, each where it is present, from `between`. p.w2, p.b2 and p.scale are those of the
// call, in any dtype:
//     dw2 = alpha * scale * P,  db2 = alpha * scale * q,  dscale = alpha * (sum over H of w2 * P + b2 * q)
// with P = (row_scale * dy)^T h and q = the column sums of row_scale * dy. alpha is 1 for dscale where scale is a
// tensor.
int sum_partials(const BackwardParams& p, const Intermediates& between, const Device& device);

}  // namespace aim_fast::cuda
