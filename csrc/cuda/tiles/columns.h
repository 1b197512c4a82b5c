// K2 of the backward: sums over rows, each range of rows for itself.
#pragma once

#include "cuda/kernels.h"

namespace aim_fast::cuda::tiles {

int splits(const BackwardParams& p, const Wanted& wanted, const Device& device);
int backward_columns(const BackwardParams& p, const Wanted& wanted, const Intermediates& between, const Device& device);

}  // namespace aim_fast::cuda::tiles
