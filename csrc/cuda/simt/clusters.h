// Both products of a few rows in one launch.
#pragma once

#include "cuda/kernels.h"
#include "cuda/simt/epilogues.h"

namespace aim_fast::cuda::simt {

using ClusterTile = Tiling<16, 32, 4, 2, 64, 6, 2>;
constexpr int kCluster = 8;  // CTAs

// The second product reads what the first one's epilogue writes. Not there where nothing was compiled for sm_90a.
int in_clusters(const Call<Hidden>& first, const Call<Output>& second, const Device& device);
int in_clusters(const Call<HiddenBackward>& first, const Call<OutputBackward>& second, const Device& device);

}  // namespace aim_fast::cuda::simt
