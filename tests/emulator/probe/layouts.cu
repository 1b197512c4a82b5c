// What each instruction takes for which element of a matrix: kernels of a few lines whose results are exact for small
// integers. Compiled for the CPU by tests/test_emulator.py; nvcc compiles it too, with `aim_probe_*` taking device
// pointers.
#include "cuda/launch.h"
#include "cuda/tensor_map.h"
#include "probe.h"

namespace aim_fast::probe {
namespace {

using ptx::BFloat16;
using ptx::Half;
using ptx::TensorMap;

constexpr int kK = 64;  // of the products: one row of 128 bytes
constexpr int kBlockBytes = 64 * kK * 2;

template <class T>
constexpr Dtype kDtype = std::is_same_v<T, BFloat16> ? Dtype::kBFloat16 : Dtype::kFloat16;

// d [64, N] += a b with wgmma. a is [m][k] or, TA, [k][m] in memory; b is [n][k] or, TB, [k][n]; RS: a from registers.
template <int N, class T, bool TA, bool TB, bool RS>
__global__ void __launch_bounds__(128) wgmma_kernel(const AIM_GRID_CONSTANT TensorMap a_map,
                                                    const AIM_GRID_CONSTANT TensorMap b_map, const T* a, float* d) {
  AIM_DYNAMIC_SHARED(shared);
  constexpr int kBlocks = (N + 63) / 64, kBytes = kBlockBytes + (TB ? kBlocks * kBlockBytes : N * kK * 2);
  const uint32_t a_tile = ptx::shared_address(shared), b_tile = a_tile + kBlockBytes, full = a_tile + kBytes;
  const int thread = threadIdx.x, row = thread / 32 * 16 + thread % 32 / 4, column = thread % 4 * 2;
  if (thread == 0) {
    ptx::mbarrier_init(full, 1);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (thread == 0) {
    ptx::mbarrier_expect(full, kBytes);
    ptx::tma_load(a_tile, &a_map, full, 0, 0);
    for (int i = 0; i < (TB ? kBlocks : 1); ++i) ptx::tma_load(b_tile + i * kBlockBytes, &b_map, full, i * 64, 0);
  }
  float sums[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; ++i) sums[i] = d[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + column + i % 2];
  uint32_t fragments[4][4];
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    fragments[i / 4][i % 4] = ptx::load32(a + (row + i % 2 * 8) * kK + i / 4 * 16 + i % 4 / 2 * 8 + column);
  }
  ptx::mbarrier_wait(full, 0);
  ptx::wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const uint64_t b_at =
        TB ? ptx::descriptor_mn_major(b_tile, kBlockBytes) + 128 * k : ptx::descriptor_k_major(b_tile) + 2 * k;
    if constexpr (RS) {
      ptx::Wgmma<N, T, TA, TB>::rs(sums, fragments[k], b_at, 1);
    } else {
      const uint64_t a_at =
          TA ? ptx::descriptor_mn_major(a_tile, kBlockBytes) + 128 * k : ptx::descriptor_k_major(a_tile) + 2 * k;
      ptx::Wgmma<N, T, TA, TB>::ss(sums, a_at, b_at, 1);
    }
  }
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  ptx::wgmma_landed(sums);
#pragma unroll
  for (int i = 0; i < N / 2; ++i) d[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + column + i % 2] = sums[i];
}

template <int N, class T, bool TA, bool TB, bool RS>
int run_wgmma(const void* a, const void* b, float* d) {
  TensorMap a_map, b_map;
  int error = cuda::make_map(&a_map, a, kDtype<T>, 64, 64, 128, 64);
  error += cuda::make_map(&b_map, b, kDtype<T>, TB ? kK : N, TB ? N : kK, (TB ? N : kK) * 2, TB ? kK : N);
  cuda::Grid grid{dim3(1), dim3(128)};
  grid.shared = kBlockBytes + (N + 63) / 64 * kBlockBytes + 16;
  return error ? error
               : cuda::launch(wgmma_kernel<N, T, TA, TB, RS>, grid, nullptr, a_map, b_map, static_cast<const T*>(a), d);
}

template <int N, class T>
int run_wgmma(bool ta, bool tb, bool rs, const void* a, const void* b, float* d) {
  if (rs) return tb ? run_wgmma<N, T, false, true, true>(a, b, d) : run_wgmma<N, T, false, false, true>(a, b, d);
  if (ta) return tb ? run_wgmma<N, T, true, true, false>(a, b, d) : run_wgmma<N, T, true, false, false>(a, b, d);
  return tb ? run_wgmma<N, T, false, true, false>(a, b, d) : run_wgmma<N, T, false, false, false>(a, b, d);
}

template <class T>
int run_wgmma(int width, bool ta, bool tb, bool rs, const void* a, const void* b, float* d) {
  switch (width) {
    case 32:
      return run_wgmma<32, T>(ta, tb, rs, a, b, d);
    case 64:
      return run_wgmma<64, T>(ta, tb, rs, a, b, d);
    case 96:
      return run_wgmma<96, T>(ta, tb, rs, a, b, d);
    case 128:
      return run_wgmma<128, T>(ta, tb, rs, a, b, d);
    case 160:
      return run_wgmma<160, T>(ta, tb, rs, a, b, d);
    case 192:
      return run_wgmma<192, T>(ta, tb, rs, a, b, d);
    case 256:
      return run_wgmma<256, T>(ta, tb, rs, a, b, d);
  }
  return -1;
}

// d [16, 8] += a [16, 16] b [16, 8] with mma: a by ldmatrix from [m][k]; b by ldmatrix from [n][k] or, transposed, by
// ldmatrix.trans from [k][n]; cp.async brings both to shared memory.
template <class T>
__global__ void __launch_bounds__(32) mma_kernel(const T* a, const T* b, float* d, bool transposed) {
  AIM_DYNAMIC_SHARED(shared);
  T* a_tile = reinterpret_cast<T*>(shared);
  T* b_tile = a_tile + 256;
  const int lane = threadIdx.x;
  ptx::cp_async_16(a_tile + lane * 8, a + lane * 8);
  ptx::cp_async_16(b_tile + lane * 8, b + lane % 16 * 8, lane < 16);  // zeros after b: ldmatrix.x4 reads twice its size
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncwarp();
  uint32_t left[4], right[4];
  ptx::ldmatrix_x4(left, a_tile + (lane % 16) * 16 + lane / 16 * 8);
  if (transposed) {
    ptx::ldmatrix_x4_trans(right, b_tile + lane * 8);
  } else {
    ptx::ldmatrix_x4(right, b_tile + lane % 8 * 16 + lane / 8 % 2 * 8);
  }
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2];
  ptx::mma<T>(sums, left, right[0], right[1]);
  for (int i = 0; i < 4; ++i) d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
}

// Four 8 x 8 matrices through ldmatrix, or ldmatrix.trans, and stmatrix: each as it was, or transposed.
__global__ void __launch_bounds__(32) matrix_kernel(const uint16_t* from, uint16_t* to, bool transposed) {
  AIM_DYNAMIC_SHARED(shared);
  uint16_t* tile = reinterpret_cast<uint16_t*>(shared);
  const int lane = threadIdx.x;
  for (int i = 0; i < 8; ++i) tile[lane * 8 + i] = from[lane * 8 + i];
  __syncwarp();
  uint32_t r[4];
  if (transposed) {
    ptx::ldmatrix_x4_trans(r, tile + lane * 8);
  } else {
    ptx::ldmatrix_x4(r, tile + lane * 8);
  }
  ptx::stmatrix_x4(tile + 256 + lane * 8, r[0], r[1], r[2], r[3]);
  __syncwarp();
  for (int i = 0; i < 8; ++i) to[lane * 8 + i] = tile[256 + lane * 8 + i];
}

// A box of 64 columns by 16 rows at (x, y) as TMA lays it down in each CTA of a cluster of two: CTA 0 loads the upper
// half for both, CTA 1 the lower. out [2, 16, 64] holds the bytes of shared memory in their order. Then it is stored
// at (x, y) of `back`.
__global__ void __launch_bounds__(32) tma_kernel(const AIM_GRID_CONSTANT TensorMap from,
                                                 const AIM_GRID_CONSTANT TensorMap back, uint16_t* out, int x, int y) {
  AIM_DYNAMIC_SHARED(shared);
  const uint32_t tile = ptx::shared_address(shared), full = tile + 2048, rank = ptx::cluster_rank();
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(full, 1);
    ptx::fence_mbarrier_init();
  }
  ptx::cluster_sync();
  if (threadIdx.x == 0) {
    ptx::mbarrier_expect(full, 2048);
    ptx::tma_load_multicast(tile + rank * 1024, &from, full, x, y + rank * 8, 3);
  }
  ptx::mbarrier_wait(full, 0);
  for (int i = threadIdx.x; i < 1024; i += 32) out[rank * 1024 + i] = reinterpret_cast<uint16_t*>(shared)[i];
  __syncwarp();
  if (threadIdx.x == 0 && rank == 0) {
    ptx::tma_store(&back, tile, x, y);
    ptx::tma_store(&back, tile + 1024, x, y + 8);
    ptx::bulk_commit();
    ptx::bulk_wait_read<0>();
  }
  ptx::cluster_sync();
}

}  // namespace
}  // namespace aim_fast::probe

using namespace aim_fast;

// Each returns null, or what went wrong. bf16: the 16-bit type, else fp16.
AIM_PROBE aim_probe_wgmma(int bf16, int width, int ta, int tb, int rs, const void* a, const void* b, float* d) {
  return probe::told([&] {
    return bf16 ? probe::run_wgmma<ptx::BFloat16>(width, ta, tb, rs, a, b, d)
                : probe::run_wgmma<ptx::Half>(width, ta, tb, rs, a, b, d);
  });
}

AIM_PROBE aim_probe_mma(int bf16, int transposed, const void* a, const void* b, float* d) {
  return probe::told([&] {
    cuda::Grid grid{dim3(1), dim3(32)};
    grid.shared = 1024;
    using ptx::BFloat16, ptx::Half;
    if (bf16) {
      return cuda::launch(probe::mma_kernel<BFloat16>, grid, nullptr, static_cast<const BFloat16*>(a),
                          static_cast<const BFloat16*>(b), d, bool(transposed));
    }
    return cuda::launch(probe::mma_kernel<Half>, grid, nullptr, static_cast<const Half*>(a),
                        static_cast<const Half*>(b), d, bool(transposed));
  });
}

AIM_PROBE aim_probe_matrix(int transposed, const uint16_t* from, uint16_t* to) {
  return probe::told([&] {
    cuda::Grid grid{dim3(1), dim3(32)};
    grid.shared = 1024;
    return cuda::launch(probe::matrix_kernel, grid, nullptr, from, to, bool(transposed));
  });
}

AIM_PROBE aim_probe_tma(const void* from, void* back, int rows, int columns, int x, int y, uint16_t* out) {
  return probe::told([&] {
    ptx::TensorMap from_map, back_map;
    if (const int error = cuda::make_map(&from_map, from, Dtype::kFloat16, rows, columns, columns * 2, 8)) return error;
    if (const int error = cuda::make_map(&back_map, back, Dtype::kFloat16, rows, columns, columns * 2, 8)) return error;
    cuda::Grid grid{dim3(2), dim3(32)};
    grid.cluster = 2;
    grid.shared = 2048 + 16;
    return cuda::launch(probe::tma_kernel, grid, nullptr, from_map, back_map, out, x, y);
  });
}
