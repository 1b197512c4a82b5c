// K2 of the backward on sm_90a, for kernels.h's table.
#pragma once

#include "cuda/kernels.h"

namespace aim_fast::cuda::hopper {

int splits(const BackwardParams& p, const Wanted& wanted, const Device& device);
int backward_columns(const BackwardParams& p, const Wanted& wanted, const Intermediates& between, const Device& device);

}  // namespace aim_fast::cuda::hopper
