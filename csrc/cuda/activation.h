// act(z) and act'(z) in registers, for every activation; the formulas are those of kernels/activation.py.
//
// Which one it is is known at run time: one branch, the same for the whole grid, per group of values. Each derivative
// shares the exponential of its function. NaN and inf go through as in the formulas that PyTorch uses.
#pragma once

#include "common/params.h"
#include "cuda/ptx.h"

namespace aim_fast::cuda {

// Distribution function and density of the normal law, the first within 1e-7: the tail is the density times a
// polynomial in 1 / (1 + p |z|), the form of Abramowitz and Stegun 26.2.17 with three more terms, fitted to 2e-9.
AIM_DEVICE void normal_law(float z, float& law, float& density) {
  density = 0.3989422804014327f * ptx::exp2(z * z * -0.7213475204444817f);
  const float t = ptx::reciprocal(fmaf(0.2316419f, fabsf(z), 1.f));
  float p = fmaf(t, -0.152514378f, 0.500986934f);
  p = fmaf(p, t, -0.254989764f);
  p = fmaf(p, t, 0.281491350f);
  p = fmaf(p, t, 0.220136868f);
  p = fmaf(p, t, 0.186481201f);
  p = fmaf(p, t, 0.240981934f);
  p = fmaf(p, t, 0.230739988f);
  const float tail = density * (p * t);
  law = z > 0.f ? 1.f - tail : tail;
}

AIM_DEVICE float sigmoid(float u) { return ptx::reciprocal(1.f + ptx::exp2(u * -1.4426950408889634f)); }

// tanh(z), and 1 - tanh^2 in a form that does not cancel far out.
AIM_DEVICE void tanh_and_slope(float z, float& h, float& slope) {
  const float square = z * z;
  // Near zero the quotient cancels: a polynomial there (Cephes, relative error 1e-7).
  float p = fmaf(square, -5.70498872745e-3f, 2.06390887954e-2f);
  p = fmaf(p, square, -5.37397155531e-2f);
  p = fmaf(p, square, 1.33314422036e-1f);
  p = fmaf(p, square, -3.33332819422e-1f);
  const float s = sigmoid(-2.f * fabsf(z)), far = 1.f - 2.f * s;
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

template <Activation A>
AIM_DEVICE float act(float z) {
  if constexpr (A == Activation::kGelu) {
    float law, density;
    normal_law(z, law, density);
    return z * law;
  } else if constexpr (A == Activation::kRelu) {
    return z < 0.f ? 0.f : z;  // NaN stays
  } else if constexpr (A == Activation::kLeakyRelu) {
    return z > 0.f ? z : 0.01f * z;
  } else if constexpr (A == Activation::kTanh) {
    float h, slope;
    tanh_and_slope(z, h, slope);
    return h;
  } else if constexpr (A == Activation::kIdentity) {
    return z;
  } else {
    float u, du;
    gate<A>(z, u, du);
    return z * sigmoid(u);
  }
}

// z becomes act(z), dh becomes dz = dh * act'(z).
template <Activation A>
AIM_DEVICE void act_backward(float& z, float& dh) {
  if constexpr (A == Activation::kGelu) {
    float law, density;
    normal_law(z, law, density);
    dh *= fmaf(z, density, law);
    z *= law;
  } else if constexpr (A == Activation::kRelu) {
    // A gate, not a product: an infinite dh is stopped where z is not positive.
    dh = z <= 0.f ? 0.f : dh;
    z = act<A>(z);
  } else if constexpr (A == Activation::kLeakyRelu) {
    dh *= z > 0.f ? 1.f : 0.01f;
    z = act<A>(z);
  } else if constexpr (A == Activation::kTanh) {
    float h, slope;
    tanh_and_slope(z, h, slope);
    dh *= slope;
    z = h;
  } else if constexpr (A != Activation::kIdentity) {
    float u, du;
    gate<A>(z, u, du);
    const float s = sigmoid(u);
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
template <int N>
AIM_DEVICE void activate(Activation activation, float (&z)[N]) {
  with_activation(activation, [&]<Activation A>() {
#pragma unroll
    for (int i = 0; i < N; ++i) z[i] = act<A>(z[i]);
  });
}

// In place, on a group of values: z becomes act(z) and dh becomes dz.
template <int N>
AIM_DEVICE void activate_backward(Activation activation, float (&z)[N], float (&dh)[N]) {
  with_activation(activation, [&]<Activation A>() {
#pragma unroll
    for (int i = 0; i < N; ++i) act_backward<A>(z[i], dh[i]);
  });
}

}  // namespace aim_fast::cuda
