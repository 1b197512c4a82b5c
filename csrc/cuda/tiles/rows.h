// The products by rows, the tiles that they choose from, and the operands that they and K2 read.
#pragma once

#include "cuda/kernels.h"
#include "cuda/tiles/product.h"

namespace aim_fast::cuda::tiles {

// The tiles of each plan, the largest first; kPlans is their number.
constexpr int kPlans = 3;
template <class T>
struct Tilings {
  using Large = WarpTiling<64, 64, 32, 32, 64, 4>;
  using Middle = WarpTiling<32, 64, 32, 32, 64, 5>;
  using Small = WarpTiling<16, 16, 16, 16, 128, 5>;
};
template <>
struct Tilings<float> {
  using Large = ThreadTiling<64, 64, 8, 4, 32, 3>;
  using Middle = ThreadTiling<32, 32, 4, 4, 32, 3>;
  using Small = ThreadTiling<16, 16, 4, 2, 64, 5>;
};

// Cycles that a CTA takes for its tile of [M, N]. In fp32 its multiply-adds at a share of the 128 a cycle; in 16 bits
// what arrives in its multiprocessor. A guess of proportions.
template <class T>
constexpr double tile_cycles(int plan, int64_t depth) {
  constexpr double kStart = 1500;
  if constexpr (std::is_same_v<T, float>) {
    constexpr double kElements[kPlans] = {64 * 64, 32 * 32, 16 * 16}, kShare[kPlans] = {0.6, 0.4, 0.25};
    return kStart + kElements[plan] * depth / (128 * kShare[plan]);
  } else {
    constexpr double kLines[kPlans] = {64 + 64, 32 + 64, 16 + 16}, kBytesOfCycle = 40;
    return kStart + kLines[plan] * 2 * depth / kBytesOfCycle;
  }
}

// The forced plan's tile, or the one that a product [M, N] takes the fewest cycles with, in rounds of CTAs.
template <class T>
int choose_tile(int64_t M, int64_t N, int64_t depth, const Device& device) {
  if (device.plan >= 0 && device.plan < kPlans) return device.plan;
  using Of = Tilings<T>;
  constexpr int kM[kPlans] = {Of::Large::kTileM, Of::Middle::kTileM, Of::Small::kTileM};
  constexpr int kN[kPlans] = {Of::Large::kTileN, Of::Middle::kTileN, Of::Small::kTileN};
  int best = 0;
  double least = 0;
  for (int plan = 0; plan < kPlans; ++plan) {
    const int64_t ctas = ((M + kM[plan] - 1) / kM[plan]) * ((N + kN[plan] - 1) / kN[plan]);
    const double cycles = static_cast<double>((ctas + device.sms - 1) / device.sms) * tile_cycles<T>(plan, depth);
    if (plan > 0 && cycles >= least) continue;
    least = cycles;
    best = plan;
  }
  return best;
}

// Calls f.template operator()<T, kWide>() with the type of the products, and with whether rows that are added may be
// fp32; in fp32 they always may.
template <class F>
int with_type(Dtype dtype, bool wide, F&& f) {
  if (dtype == Dtype::kFloat32) return f.template operator()<float, true>();
  if (dtype == Dtype::kBFloat16) {
    return wide ? f.template operator()<ptx::BFloat16, true>() : f.template operator()<ptx::BFloat16, false>();
  }
  return wide ? f.template operator()<ptx::Half, true>() : f.template operator()<ptx::Half, false>();
}

// A contiguous matrix.
Operand matrix(const char* data, Dtype dtype, int64_t rows, int64_t columns);

int forward(const ForwardParams& p, const Intermediates& between, const Device& device);
int backward_rows(const BackwardParams& p, const Intermediates& between, const Device& device);

}  // namespace aim_fast::cuda::tiles
