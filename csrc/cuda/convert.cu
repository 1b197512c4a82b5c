#include <algorithm>

#include "cuda/convert.h"
#include "cuda/launch.h"
#include "cuda/rows.h"
#include "cuda/vectors.h"

namespace aim_fast::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kAtOnce = 4;        // conversions of a launch
constexpr int kMaxBlocks = 2048;  // of one; as many as any GPU runs at once
constexpr int kVector = 8;        // elements that a thread converts at once: 16 bytes of 16-bit ones

struct Job {
  DeviceRows from;
  Array to, factor;
  uint32_t rows;
  int64_t columns;
};
struct Jobs {
  Job job[kAtOnce];
};

// Eight neighbours, aligned to 16 bytes.
AIM_DEVICE void load_vector(float (&v)[kVector], const char* p, Dtype dtype) {
  if (dtype == Dtype::kFloat32) {
    const float4 low = *reinterpret_cast<const float4*>(p), high = *reinterpret_cast<const float4*>(p + 16);
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
    v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
    return;
  }
  const uint4 r = *reinterpret_cast<const uint4*>(p);
  const uint32_t pairs[4] = {r.x, r.y, r.z, r.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool bf16 = dtype == Dtype::kBFloat16;
    v[2 * i] = bf16 ? ptx::low<ptx::BFloat16>(pairs[i]) : ptx::low<ptx::Half>(pairs[i]);
    v[2 * i + 1] = bf16 ? ptx::high<ptx::BFloat16>(pairs[i]) : ptx::high<ptx::Half>(pairs[i]);
  }
}

AIM_DEVICE void store_vector(char* p, Dtype dtype, const float (&v)[kVector]) {
  if (dtype == Dtype::kFloat32) {
    *reinterpret_cast<float4*>(p) = {v[0], v[1], v[2], v[3]};
    *reinterpret_cast<float4*>(p + 16) = {v[4], v[5], v[6], v[7]};
    return;
  }
  *reinterpret_cast<uint4*>(p) = {pack_as(dtype, v[0], v[1]), pack_as(dtype, v[2], v[3]), pack_as(dtype, v[4], v[5]),
                                  pack_as(dtype, v[6], v[7])};
}

// A warp walks a row, by vectors where each begins on 16 bytes, else so that its reads and writes are of neighbours.
__global__ void __launch_bounds__(kThreads) convert_kernel(const AIM_GRID_CONSTANT Jobs jobs) {
  const Job& job = jobs.job[blockIdx.y];
  const int lane = threadIdx.x % 32;
  const int from_size = job.from.dtype == Dtype::kFloat32 ? 4 : 2, to_size = job.to.dtype == Dtype::kFloat32 ? 4 : 2;
  for (uint32_t m = blockIdx.x * kWarps + threadIdx.x / 32; m < job.rows; m += gridDim.x * kWarps) {
    const char* from = job.from.row(m);
    char* to = job.to.data + m * job.columns * to_size;
    const float factor = job.factor ? load_float(job.factor.data, job.factor.dtype, m) : 1.f;
    if (job.columns % kVector == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
#pragma unroll 4
      for (int64_t i = lane * kVector; i < job.columns; i += 32 * kVector) {
        float v[kVector];
        load_vector(v, from + i * from_size, job.from.dtype);
#pragma unroll
        for (int k = 0; k < kVector; ++k) v[k] *= factor;
        store_vector(to + i * to_size, job.to.dtype, v);
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
