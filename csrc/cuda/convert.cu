#include <algorithm>

#include "cuda/convert.h"
#include "cuda/launch.h"
#include "cuda/rows.h"
#include "cuda/vectors.h"

namespace aim_fast::cuda {
namespace {

constexpr int kThreads = 256;

// A warp walks a row, so that its reads and writes are of neighbours whatever the alignment.
__global__ void __launch_bounds__(kThreads)
    convert_kernel(const AIM_GRID_CONSTANT DeviceRows from, Array to, Array factor, uint32_t rows, int64_t columns) {
  const int lane = threadIdx.x % 32;
  for (uint32_t m = blockIdx.x * (kThreads / 32) + threadIdx.x / 32; m < rows; m += gridDim.x * (kThreads / 32)) {
    const char* row = from.row(m);
    const float scale = factor ? load_float(factor.data, factor.dtype, m) : 1.f;
    for (int64_t i = lane; i < columns; i += 32) {
      store_float(to.data, to.dtype, m * columns + i, load_float(row, from.dtype, i) * scale);
    }
  }
}

}  // namespace

int convert(const Conversion& c, void* stream) {
  if (c.rows == 0) return 0;
  const int64_t blocks = std::min<int64_t>((c.rows + kThreads / 32 - 1) / (kThreads / 32), 1024);
  const Grid grid{dim3(static_cast<unsigned>(blocks)), dim3(kThreads)};
  return launch(convert_kernel, grid, stream, device_rows(c.from), c.to, c.factor, static_cast<uint32_t>(c.rows),
                c.columns);
}

}  // namespace aim_fast::cuda
