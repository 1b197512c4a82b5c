#include "cuda/launch.h"
#include "cuda/simt/clusters.h"

namespace aim_fast::cuda::simt {
namespace {

// Both products of a block of rows by the CTAs of a cluster, in turns over the columns. What the first writes is read
// in the second by whole vectors past the first cache, after a barrier of the cluster.
template <class T, Lines kLinesB, class First, class Second>
__global__ void __launch_bounds__(kThreads, T::kCtas)
    cluster_kernel(const AIM_GRID_CONSTANT Call<First> first, const AIM_GRID_CONSTANT Call<Second> second) {
  AIM_DYNAMIC_SHARED(shared);
  const int64_t m = int64_t{blockIdx.x} / kCluster * T::kTileM, own = int64_t{ptx::cluster_rank()} * T::kTileN;
  constexpr int kTurn = kCluster * T::kTileN;
  for (int64_t n = own; n < first.N; n += kTurn) {
    multiply_tile<T, kLinesB>(shared, first, m, n);
    __syncthreads();
  }
  ptx::cluster_sync();
  for (int64_t n = own; n < second.N; n += kTurn) {
    multiply_tile<T, kLinesB>(shared, second, m, n);
    __syncthreads();
  }
}

template <Lines kLinesB, class First, class Second>
int launch_clusters(const Call<First>& first, const Call<Second>& second, const Device& device) {
  using T = ClusterTile;
  const Grid grid{dim3(static_cast<unsigned>((first.M + T::kTileM - 1) / T::kTileM * kCluster)), dim3(kThreads),
                  kCluster, Product<T, Lines::kAlongDepth, kLinesB>::kShared};
  return launch(cluster_kernel<T, kLinesB, First, Second>, grid, device.stream, first, second);
}

}  // namespace

int in_clusters(const Call<Hidden>& first, const Call<Output>& second, const Device& device) {
  return launch_clusters<Lines::kAlongDepth>(first, second, device);
}

int in_clusters(const Call<HiddenBackward>& first, const Call<OutputBackward>& second, const Device& device) {
  return launch_clusters<Lines::kAcrossDepth>(first, second, device);
}

}  // namespace aim_fast::cuda::simt
