#include <algorithm>

#include "cuda/convert.h"
#include "cuda/launch.h"
#include "cuda/pieces.h"
#include "cuda/rows.h"
#include "cuda/vectors.h"

namespace aim_fast::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kAtOnce = 4;        // conversions of a launch
constexpr int kMaxBlocks = 2048;  // of one; as many as any GPU runs at once

struct Job {
  DeviceRows from;
  Array to, factor;
  uint32_t rows;
  int64_t columns;
};
struct Jobs {
  Job job[kAtOnce];
};

// A warp walks a row, by pieces where each begins on 16 bytes, else so that its reads and writes are of neighbours.
__global__ void __launch_bounds__(kThreads) convert_kernel(const AIM_GRID_CONSTANT Jobs jobs) {
  const Job& job = jobs.job[blockIdx.y];
  const int lane = threadIdx.x % 32;
  for (uint32_t m = blockIdx.x * kWarps + threadIdx.x / 32; m < job.rows; m += gridDim.x * kWarps) {
    const char* from = job.from.row(m);
    char* to = job.to.data + m * job.columns * element_size(job.to.dtype);
    const float factor = job.factor ? load_float(job.factor.data, job.factor.dtype, m) : 1.f;
    if (job.columns % kPiece == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
#pragma unroll 4
      for (int64_t i = lane * kPiece; i < job.columns; i += 32 * kPiece) {
        float v[kPiece];
        unpack(load_piece(from, job.from.dtype, i), job.from.dtype, v);
#pragma unroll
        for (int k = 0; k < kPiece; ++k) v[k] *= factor;
        store_piece(to, job.to.dtype, i, v);
      }
    } else {
      for (int64_t i = lane; i < job.columns; i += 32) {
        store_float(to, job.to.dtype, i, load_float(from, job.from.dtype, i) * factor);
      }
    }
  }
}

}  // namespace

int convert(const std::vector<Conversion>& conversions, void* stream) {
  Jobs jobs = {};
  int count = 0;
  int64_t rows = 0;  // of the longest
  const auto run = [&] {
    if (!count) return 0;
    const auto blocks = static_cast<unsigned>(std::min<int64_t>((rows + kWarps - 1) / kWarps, kMaxBlocks));
    const Grid grid{dim3(blocks, static_cast<unsigned>(count)), dim3(kThreads)};
    count = 0;
    rows = 0;
    return launch(convert_kernel, grid, stream, jobs);
  };
  for (const Conversion& c : conversions) {
    if (c.rows == 0) continue;
    jobs.job[count++] = {device_rows(c.from), c.to, c.factor, static_cast<uint32_t>(c.rows), c.columns};
    rows = std::max(rows, c.rows);
    if (count < kAtOnce) continue;
    if (const int error = run()) return error;
  }
  return run();
}

}  // namespace aim_fast::cuda
