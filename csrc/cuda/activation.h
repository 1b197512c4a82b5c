// act(z) and act'(z) in registers, for every activation, to be rounded to T; the formulas are those of
// kernels/activation.py but for the GELU's.
//
// Which one it is is known at run time: one branch, the same for the whole grid. Each derivative but that of the GELU
// in bf16 and fp32 shares the exponential of its function. NaN and inf go through as in the formulas that PyTorch uses.
#pragma once

#include "common/params.h"
#include "cuda/ptx.h"

namespace aim_fast::cuda {

// Instructions are exact enough for 16 bits; fp32 takes the functions of the mathematical library.
template <class T>
AIM_DEVICE float exp2(float v) {
  if constexpr (std::is_same_v<T, float>) return exp2f(v);
  return ptx::exp2(v);
}
template <class T>
AIM_DEVICE float reciprocal(float v) {
  if constexpr (std::is_same_v<T, float>) return 1.f / v;
  return ptx::reciprocal(v);
}

template <class T>
AIM_DEVICE float normal_density(float z) {
  return 0.3989422804014327f * exp2<T>(z * z * -0.7213475204444817f);
}

// Distribution function of the normal law. In the 16 bits that it is rounded to, z times it is within a tenth of a unit
// in the last place, of 2^-14 where it is less than that; in fp32 within 18 units, found at z = -3.7.
template <class T>
AIM_DEVICE float normal_law(float z) {
  if constexpr (std::is_same_v<T, float>) {
    return 0.5f * erfcf(z * -0.7071067811865475f);
  } else if constexpr (std::is_same_v<T, ptx::BFloat16>) {
    // Within 1.2e-4: 1 / (1 + 2^(-z p(z^2))), p a minimax fit for |z| < 6.4. NaN and inf go on in z.
    const float s = fminf(z * z, 41.f);
    float p = fmaf(s, -2.374853914e-8f, 1.822035301e-6f);
    p = fmaf(p, s, -3.519537494e-5f);
    p = fmaf(p, s, -8.890102617e-4f);
    p = fmaf(p, s, 0.1070991307f);
    p = fmaf(p, s, 2.300163746f);
    return ptx::reciprocal(1.f + ptx::exp2(-z * p));
  } else {
    // Within 1e-7: the tail is the density times a polynomial in 1 / (1 + p |z|), the form of Abramowitz and Stegun
    // 26.2.17 with three more terms, fitted to 2e-9.
    const float t = ptx::reciprocal(fmaf(0.2316419f, fabsf(z), 1.f));
    float p = fmaf(t, -0.152514378f, 0.500986934f);
    p = fmaf(p, t, -0.254989764f);
    p = fmaf(p, t, 0.281491350f);
    p = fmaf(p, t, 0.220136868f);
    p = fmaf(p, t, 0.186481201f);
    p = fmaf(p, t, 0.240981934f);
    p = fmaf(p, t, 0.230739988f);
    const float tail = normal_density<T>(z) * (p * t);
    return z > 0.f ? 1.f - tail : tail;
  }
}

template <class T>
AIM_DEVICE float sigmoid(float u) {
  return reciprocal<T>(1.f + exp2<T>(u * -1.4426950408889634f));
}

// tanh(z), and 1 - tanh^2 in a form that does not cancel far out.
template <class T>
AIM_DEVICE void tanh_and_slope(float z, float& h, float& slope) {
  const float square = z * z;
  // Near zero the quotient cancels: a polynomial there (Cephes, relative error 1e-7).
  float p = fmaf(square, -5.70498872745e-3f, 2.06390887954e-2f);
  p = fmaf(p, square, -5.37397155531e-2f);
  p = fmaf(p, square, 1.33314422036e-1f);
  p = fmaf(p, square, -3.33332819422e-1f);
  const float s = sigmoid<T>(-2.f * fabsf(z)), far = 1.f - 2.f * s;
  h = square < 0.390625f ? fmaf(z * square, p, z) : z < 0.f ? -far : far;
  slope = 4.f * s * (1.f - s);
}

// u(z) and u'(z) of the activations z * sigmoid(u(z)).
template <Activation A>
AIM_DEVICE void gate(float z, float& u, float& du) {
  if constexpr (A == Activation::kGeluTanh) {
    // (1 + tanh(u / 2)) / 2 is sigmoid(u); 2 sqrt(2 / pi) = 1.59577
    const float square = z * z;
    u = 1.5957691216f * z * fmaf(0.044715f, square, 1.f);
    du = 1.5957691216f * fmaf(0.134145f, square, 1.f);
  } else {
    constexpr float kSlope = A == Activation::kQuickGelu ? 1.702f : 1.f;
    u = kSlope * z;
    du = kSlope;
  }
}

template <Activation A, class T>
AIM_DEVICE float act(float z) {
  if constexpr (A == Activation::kGelu) {
    return z * normal_law<T>(z);
  } else if constexpr (A == Activation::kRelu) {
    return z < 0.f ? 0.f : z;  // NaN stays
  } else if constexpr (A == Activation::kLeakyRelu) {
    return z > 0.f ? z : 0.01f * z;
  } else if constexpr (A == Activation::kTanh) {
    float h, slope;
    tanh_and_slope<T>(z, h, slope);
    return h;
  } else if constexpr (A == Activation::kIdentity) {
    return z;
  } else {
    float u, du;
    gate<A>(z, u, du);
    return z * sigmoid<T>(u);
  }
}

// z becomes act(z), dh becomes dz = dh * act'(z).
template <Activation A, class T>
AIM_DEVICE void act_backward(float& z, float& dh) {
  if constexpr (A == Activation::kGelu) {
    const float law = normal_law<T>(z);
    dh *= fmaf(z, normal_density<T>(z), law);
    z *= law;
  } else if constexpr (A == Activation::kRelu) {
    // A gate, not a product: an infinite dh is stopped where z is not positive.
    dh = z <= 0.f ? 0.f : dh;
    z = act<A, T>(z);
  } else if constexpr (A == Activation::kLeakyRelu) {
    dh *= z > 0.f ? 1.f : 0.01f;
    z = act<A, T>(z);
  } else if constexpr (A == Activation::kTanh) {
    float h, slope;
    tanh_and_slope<T>(z, h, slope);
    dh *= slope;
    z = h;
  } else if constexpr (A != Activation::kIdentity) {
    float u, du;
    gate<A>(z, u, du);
    const float s = sigmoid<T>(u);
    dh *= fmaf(z * s * (1.f - s), du, s);
    z *= s;
  }
}

// Calls f.template operator()<A>() with the activation as a constant.
template <class F>
AIM_DEVICE void with_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::kGelu:
      return f.template operator()<Activation::kGelu>();
    case Activation::kGeluTanh:
      return f.template operator()<Activation::kGeluTanh>();
    case Activation::kQuickGelu:
      return f.template operator()<Activation::kQuickGelu>();
    case Activation::kRelu:
      return f.template operator()<Activation::kRelu>();
    case Activation::kSilu:
      return f.template operator()<Activation::kSilu>();
    case Activation::kTanh:
      return f.template operator()<Activation::kTanh>();
    case Activation::kLeakyRelu:
      return f.template operator()<Activation::kLeakyRelu>();
    case Activation::kIdentity:
      return f.template operator()<Activation::kIdentity>();
  }
}

// In place, on a group of values: z becomes act(z).
template <Activation A, class T, int N>
AIM_DEVICE void activate(float (&z)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) z[i] = act<A, T>(z[i]);
}
template <class T, int N>
AIM_DEVICE void activate(Activation activation, float (&z)[N]) {
  with_activation(activation, [&]<Activation A>() { activate<A, T>(z); });
}

// In place, on a group of values: z becomes act(z) and dh becomes dz.
template <Activation A, class T, int N>
AIM_DEVICE void activate_backward(float (&z)[N], float (&dh)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) act_backward<A, T>(z[i], dh[i]);
}
template <class T, int N>
AIM_DEVICE void activate_backward(Activation activation, float (&z)[N], float (&dh)[N]) {
  with_activation(activation, [&]<Activation A>() { activate_backward<A, T>(z, dh); });
}

}  // namespace aim_fast::cuda
