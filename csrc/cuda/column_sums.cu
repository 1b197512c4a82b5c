// out [splits, columns] = sums over a range's rows of row_scale * data.
//
// Tiling    a block of 256 threads to 64 columns and a range: 8 threads by 16 bytes across, 32 rows at once
// Flow      each thread sums every 32nd row; the 32 sums of a column are added in order
// Memory    the matrix once
#include <algorithm>

#include "cuda/column_sums.h"
#include "cuda/launch.h"
#include "cuda/rows.h"
#include "cuda/vectors.h"

namespace aim_fast::cuda {
namespace {

constexpr int kVector = 8;    // 16-bit elements of a thread
constexpr int kColumns = 64;  // of a block
constexpr int kRows = 32;     // that a block reads at once
constexpr int kThreads = kColumns / kVector * kRows;
constexpr int kBlocksPerMultiprocessor = 4;  // as many as its threads allow, to have enough bytes under way
constexpr int64_t kLeastRows = 8 * kRows;    // of a range: adding up a block's threads costs about two rows' time

template <class T>
__global__ void __launch_bounds__(kThreads)
    column_sums_kernel(const AIM_GRID_CONSTANT ColumnSums call, const AIM_GRID_CONSTANT DeviceRows row_scale) {
  __shared__ float parts[kRows][kColumns + 1];
  const int across = threadIdx.x % (kColumns / kVector), down = threadIdx.x / (kColumns / kVector);
  const int64_t first_column = int64_t{blockIdx.x} * kColumns, column = first_column + across * kVector;
  const int split = blockIdx.y;
  const int64_t begin = call.rows * split / call.splits, end = call.rows * (split + 1) / call.splits;
  float sum[kVector] = {};
  if (column < call.columns) {
#pragma unroll 4
    for (int64_t m = begin + down; m < end; m += kRows) {
      const uint4 vector = *reinterpret_cast<const uint4*>(call.data + m * call.row_bytes + 2 * column);
      const uint32_t pairs[] = {vector.x, vector.y, vector.z, vector.w};
      const float factor = row_scale ? load_float(row_scale.row(static_cast<uint32_t>(m)), row_scale.dtype, 0) : 1.f;
#pragma unroll
      for (int i = 0; i < kVector / 2; ++i) {
        sum[2 * i] += factor * ptx::low<T>(pairs[i]);
        sum[2 * i + 1] += factor * ptx::high<T>(pairs[i]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) parts[down][across * kVector + i] = sum[i];
  __syncthreads();
  const int mine = threadIdx.x;
  if (mine >= kColumns || first_column + mine >= call.columns) return;
  float total = 0.f;
#pragma unroll
  for (int i = 0; i < kRows; ++i) total += parts[i][mine];
  call.out[split * call.pitch + first_column + mine] = total;
}

}  // namespace

int column_sums(const ColumnSums& call, void* stream) {
  const Grid grid{dim3(static_cast<unsigned>((call.columns + kColumns - 1) / kColumns), call.splits), dim3(kThreads)};
  const auto kernel =
      call.dtype == Dtype::kBFloat16 ? column_sums_kernel<ptx::BFloat16> : column_sums_kernel<ptx::Half>;
  return launch(kernel, grid, stream, call, device_rows(call.row_scale));
}

int column_sum_splits(int64_t rows, int64_t columns, int sms) {
  const int64_t blocks = (columns + kColumns - 1) / kColumns;
  const int64_t wave = sms * kBlocksPerMultiprocessor / blocks;
  return static_cast<int>(std::max<int64_t>(1, std::min(wave, rows / kLeastRows)));
}

}  // namespace aim_fast::cuda
