// The compiled kernels of sm_80 and up: what instances/ defines, one launcher in a file.
#pragma once

#include "cuda/ampere/columns_call.h"
#include "cuda/ampere/rows_call.h"
#include "cuda/launch.h"

namespace aim_fast::cuda::ampere {

template <class T, int kHidden>
int launch_forward(const RowsCall& call, const Grid& grid, void* stream);
template <class T, int kHidden>
int launch_backward_rows(const RowsCall& call, const Grid& grid, void* stream);
template <class T, int kTileH>
int launch_columns(const ColumnsCall& call, int ranges, void* stream);

}  // namespace aim_fast::cuda::ampere
