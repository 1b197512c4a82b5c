//     dw[range] = dz^T x, h^T dy  [H, D];   sums[range] = column sums of dz [H], of row_scale * dy [D]
//
// or, of few rows without a scale, which then are one range, the gradients themselves:
//
//     dw1 = dz^T x  [H, D];  dw2 = alpha dy^T h  [D, H];  db1, db2 = the sums, the second times alpha
//
//     Shapes    dz, h [M, H] contiguous; x, dy [M, D] by rows of any strides
//     Tiling    a CTA: 64 x 64 of one product (product.h, whose depth are the rows), or 64 columns of one of the sums
//     Order     of every sum: fixed; the ranges are summed by sum.h. The same bits from run to run
#include <algorithm>

#include "cuda/launch.h"
#include "cuda/tiles/columns.h"
#include "cuda/tiles/epilogues.h"
#include "cuda/tiles/product.h"
#include "cuda/tiles/rows.h"
#include "cuda/vectors.h"

namespace aim_fast::cuda::tiles {
namespace {

template <class T>
using ColumnsProduct = Product<T, typename Tilings<T>::Large, Lines::kAcrossDepth, Lines::kAcrossDepth>;
constexpr int kEdge = 64;                                           // of a tile of any T
constexpr int kAcross = kEdge / kFour, kDown = kThreads / kAcross;  // threads of a CTA that sums columns
constexpr int64_t kLeastRows = 64;                                  // of a range
constexpr int64_t kFewRows = 256;  // in one range: more of them fill a GPU better, but take a launch to be summed
// Of a range in fp32, unless the partial results would take more than kMostBytes: with more rows its error shows.
constexpr int64_t kMostRows = 1024, kMostBytes = 32 << 20;
constexpr int kRowsAtOnce = 8;  // added up before they go to the sum, so that it is rounded less often

// Where a result goes: of the first range, how far the next one's is, and what it is multiplied by.
struct Result {
  Array to;
  int64_t range_bytes;
  float factor;

  AIM_DEVICE void store(int64_t range, int64_t i, float (&v)[kFour]) const {
#pragma unroll
    for (int k = 0; k < kFour; ++k) v[k] *= factor;
    store_four(to.data + range * range_bytes, to.dtype, i, v);
  }
};

// The epilogue of the products.
struct Keep {
  const Result& result;
  int64_t range, N;

  AIM_DEVICE Nothing columns(int64_t) const { return {}; }
  AIM_DEVICE Nothing elements(int64_t, int64_t) const { return {}; }
  AIM_DEVICE void operator()(int64_t m, int64_t n, float (&v)[kFour], Nothing, Nothing) const {
    result.store(range, m * N + n, v);
  }
};

// One of the products and of the sums, by CTAs of their own.
struct Part {
  Operand a, b;  // of the product a^T b
  Operand summed;
  DeviceRows row_scale;  // of what is summed
  Result product, sums;
  int tiles_b, tiles, ctas;  // of the product, across and in all; with those of the sums
};

struct Columns {
  Part parts[2];
  int64_t M, range;
};

constexpr int64_t count_tiles(int64_t size) { return (size + kEdge - 1) / kEdge; }

template <class T>
AIM_DEVICE void sum_columns(float* shared, const Part& part, int64_t first, Depth rows, int64_t range) {
  const int across = threadIdx.x % kAcross * kFour, down = threadIdx.x / kAcross;
  float sum[kFour] = {};
  if (first + across < part.summed.length) {
    for (int64_t m = rows.begin + down; m < rows.end; m += kRowsAtOnce * kDown) {
      float some[kFour] = {};
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) {
        if (m + i * kDown >= rows.end) break;
        const int64_t row = m + i * kDown;
        const float factor = row_factor(part.row_scale, row);
        float four[kFour];
        load_four(row_of(part.summed.lines, row), kDtype<T>, first + across, four);
#pragma unroll
        for (int j = 0; j < kFour; ++j) some[j] = fmaf(factor, four[j], some[j]);
      }
#pragma unroll
      for (int j = 0; j < kFour; ++j) sum[j] += some[j];
    }
  }
#pragma unroll
  for (int i = 0; i < kFour; ++i) shared[down * kEdge + across + i] = sum[i];
  __syncthreads();
  const int column = threadIdx.x * kFour;
  if (column >= kEdge || first + column >= part.summed.length) return;
  float total[kFour] = {};
#pragma unroll
  for (int i = 0; i < kDown; ++i) {
#pragma unroll
    for (int j = 0; j < kFour; ++j) total[j] += shared[i * kEdge + column + j];
  }
  part.sums.store(range, first + column, total);
}

template <class T>
__global__ void __launch_bounds__(kThreads, kCtas<T>) columns_kernel(const AIM_GRID_CONSTANT Columns call) {
  AIM_DYNAMIC_SHARED(memory);
  ptx::wait_for_launch_before();
  ptx::allow_next_launch();
  const int which = static_cast<int>(blockIdx.x) >= call.parts[0].ctas;
  const Part& part = call.parts[which];
  const int cta = static_cast<int>(blockIdx.x) - (which ? call.parts[0].ctas : 0);
  const int64_t range = blockIdx.y, begin = range * call.range, end = begin + call.range;
  const Depth rows{begin < call.M ? begin : call.M, end < call.M ? end : call.M};
  if (cta >= part.tiles) {
    sum_columns<T>(reinterpret_cast<float*>(memory), part, int64_t{cta - part.tiles} * kEdge, rows, range);
    return;
  }
  ColumnsProduct<T>::run(memory, part.a, part.b, int64_t{cta / part.tiles_b} * kEdge,
                         int64_t{cta % part.tiles_b} * kEdge, part.a.length, part.b.length, rows,
                         Keep{part.product, range, part.b.length});
}

Part make_part(const Operand& a, const Operand& b, const Operand& summed, const DeviceRows& row_scale, bool multiplies,
               bool sums) {
  const int64_t tiles_b = count_tiles(b.length), tiles = multiplies ? count_tiles(a.length) * tiles_b : 0;
  const int64_t ctas = tiles + (sums ? count_tiles(summed.length) : 0);
  return {a, b, summed, row_scale, {}, {}, static_cast<int>(tiles_b), static_cast<int>(tiles), static_cast<int>(ctas)};
}

Array floats(float* data) { return {reinterpret_cast<char*>(data), Dtype::kFloat32}; }

}  // namespace

int splits(const BackwardParams& call, const Wanted& wanted, const Device& device) {
  if (call.M <= kFewRows && !call.scale) return 0;
  const int64_t tiles_h = count_tiles(call.H), tiles_d = count_tiles(call.D);
  const int64_t tiles = std::max<int64_t>(1, (int64_t{wanted.dw1} + wanted.dw2) * tiles_h * tiles_d);
  const auto filling = [&](int64_t room, int64_t ctas) {
    return std::max<int64_t>(1, std::min(room * device.sms / ctas, call.M / kLeastRows));
  };
  // In 16 bits products are so quick that the sums need places of their own.
  if (call.dtype != Dtype::kFloat32) return filling(kCtas<ptx::BFloat16>, tiles + tiles_h + tiles_d);
  const int64_t exact = std::min((call.M + kMostRows - 1) / kMostRows, kMostBytes / (8 * call.H * call.D));
  return static_cast<int>(std::max(filling(kCtas<float>, tiles), exact));
}

int backward_columns(const BackwardParams& p, const Wanted& wanted, const Intermediates& between,
                     const Device& device) {
  const bool whole = between.splits == 0;
  const int64_t ranges = whole ? 1 : between.splits;
  const Operand dz = matrix(between.dz, p.dtype, p.M, p.H), h = matrix(between.h, p.dtype, p.M, p.H);
  const Operand x{device_rows(p.x), p.M, p.D}, dy{device_rows(p.dy), p.M, p.D};
  Columns call{{make_part(dz, x, dz, {}, wanted.dw1, wanted.db1),
                make_part(whole ? dy : h, whole ? h : dy, dy, device_rows(p.row_scale), wanted.dw2, wanted.db2)},
               p.M,
               (p.M + ranges - 1) / ranges};
  auto& [first, second] = call.parts;
  if (whole) {
    first.product = {p.dw1, 0, 1.f};
    first.sums = {p.db1, 0, 1.f};
    second.product = {p.dw2, 0, p.alpha};
    second.sums = {p.db2, 0, p.alpha};
  } else {
    const int64_t dw_bytes = 8 * p.H * p.D, sums_bytes = 4 * (p.H + p.D);
    first.product = {floats(between.dw), dw_bytes, 1.f};
    first.sums = {floats(between.sums), sums_bytes, 1.f};
    second.product = {floats(between.dw + p.H * p.D), dw_bytes, 1.f};
    second.sums = {floats(between.sums + p.H), sums_bytes, 1.f};
  }
  // The products by rows are launched before, unless db2 alone is wanted.
  const bool early = device.early && (wanted.dw1 || wanted.dw2 || wanted.db1);
  return with_type(p.dtype, false, [&]<class T, bool>() {
    const Grid grid{dim3(static_cast<unsigned>(first.ctas + second.ctas), static_cast<unsigned>(ranges)),
                    dim3(kThreads), 1, ColumnsProduct<T>::kShared, early};
    return launch(columns_kernel<T>, grid, device.stream, call);
  });
}

}  // namespace aim_fast::cuda::tiles
