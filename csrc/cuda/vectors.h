// Biases, scales and factors in the dtype they come in, read as fp32. Each branch is the same for the whole grid.
#pragma once

#include "common/params.h"
#include "cuda/ptx.h"

namespace aim_fast::cuda {

template <class T>
constexpr Dtype kDtype = std::is_same_v<T, float>           ? Dtype::kFloat32
                         : std::is_same_v<T, ptx::BFloat16> ? Dtype::kBFloat16
                                                            : Dtype::kFloat16;

AIM_DEVICE float load_float(const char* p, Dtype dtype, int64_t i) {
  if (dtype == Dtype::kFloat32) return reinterpret_cast<const float*>(p)[i];
  if (dtype == Dtype::kBFloat16) return __bfloat162float(reinterpret_cast<const ptx::BFloat16*>(p)[i]);
  return __half2float(reinterpret_cast<const ptx::Half*>(p)[i]);
}

// Elements i and i + 1; i is even.
AIM_DEVICE float2 load_floats(const char* p, Dtype dtype, int64_t i) {
  if (dtype == Dtype::kFloat32) return *reinterpret_cast<const float2*>(p + 4 * i);
  const uint32_t pair = *reinterpret_cast<const uint32_t*>(p + 2 * i);
  if (dtype == Dtype::kBFloat16) return {ptx::low<ptx::BFloat16>(pair), ptx::high<ptx::BFloat16>(pair)};
  return {ptx::low<ptx::Half>(pair), ptx::high<ptx::Half>(pair)};
}

// Elements i to i + 3 as they are; i is a multiple of 4. Several loads may be under way before the first is converted.
AIM_DEVICE uint4 load_four(const char* p, Dtype dtype, int64_t i) {
  if (dtype == Dtype::kFloat32) return *reinterpret_cast<const uint4*>(p + 4 * i);
  const uint2 two = *reinterpret_cast<const uint2*>(p + 2 * i);
  return {two.x, two.y, 0, 0};
}
AIM_DEVICE void convert_four(const uint4& four, Dtype dtype, float (&v)[4]) {
  if (dtype == Dtype::kFloat32) {
    memcpy(v, &four, sizeof v);
  } else if (dtype == Dtype::kBFloat16) {
    v[0] = ptx::low<ptx::BFloat16>(four.x), v[1] = ptx::high<ptx::BFloat16>(four.x);
    v[2] = ptx::low<ptx::BFloat16>(four.y), v[3] = ptx::high<ptx::BFloat16>(four.y);
  } else {
    v[0] = ptx::low<ptx::Half>(four.x), v[1] = ptx::high<ptx::Half>(four.x);
    v[2] = ptx::low<ptx::Half>(four.y), v[3] = ptx::high<ptx::Half>(four.y);
  }
}
AIM_DEVICE void load_four(const char* p, Dtype dtype, int64_t i, float (&v)[4]) {
  convert_four(load_four(p, dtype, i), dtype, v);
}

// Two fp32 rounded to a 16-bit dtype, the first in the low half.
AIM_DEVICE uint32_t pack_as(Dtype dtype, float lo, float hi) {
  return dtype == Dtype::kBFloat16 ? ptx::pack<ptx::BFloat16>(lo, hi) : ptx::pack<ptx::Half>(lo, hi);
}

AIM_DEVICE void store_float(char* p, Dtype dtype, int64_t i, float v) {
  if (dtype == Dtype::kFloat32)
    reinterpret_cast<float*>(p)[i] = v;
  else if (dtype == Dtype::kBFloat16)
    reinterpret_cast<ptx::BFloat16*>(p)[i] = __float2bfloat16_rn(v);
  else
    reinterpret_cast<ptx::Half*>(p)[i] = __float2half_rn(v);
}

// Elements i to i + 3; i is a multiple of 4.
AIM_DEVICE void store_four(char* p, Dtype dtype, int64_t i, const float (&v)[4]) {
  if (dtype == Dtype::kFloat32)
    *reinterpret_cast<float4*>(p + 4 * i) = {v[0], v[1], v[2], v[3]};
  else
    *reinterpret_cast<uint2*>(p + 2 * i) = {pack_as(dtype, v[0], v[1]), pack_as(dtype, v[2], v[3])};
}

}  // namespace aim_fast::cuda
