// act(z) and act'(z) on float vectors, for every activation of the operator.
//
// Each is one struct: value(z), and both(z, derivative), which shares the exponential. inf and NaN go through as in the
// formulas that PyTorch uses. Largest errors against float64 are asserted by tests/test_numerics.py in fp32.
#pragma once

#include "vec.h"

namespace aim_fast::AIM_FAST_ISA {

// e^x, relative error 1e-7; 0 below -87.3 and inf above 88.7 as in float.
AIM_FAST_INLINE Float exp(Float x) {
  constexpr float kHigh = 88.72283f, kLow = -87.33654f, kRound = 0x1.8p23f;
  Float t = select(x > kHigh, splat(kHigh), select(x < kLow, splat(kLow), x));  // NaN stays
  Float n = (t * 1.44269504f + kRound) - kRound;
  Float r = t - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Float p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^n in two factors: n = 128 alone does not fit the exponent.
  Int i = __builtin_convertvector(n, Int);
  Int half = i >> 1;
  Float result = p * (Float)((half + 127) << 23) * (Float)((i - half + 127) << 23);
  result = select(x > kHigh, splat(__builtin_inff()), result);
  result = select(x < kLow, Float{}, result);
  return select(x != x, x, result);
}

AIM_FAST_INLINE Float magnitude(Float x) { return (Float)((Int)x & 0x7fffffff); }

AIM_FAST_INLINE Float with_sign_of(Float value, Float sign) {
  return (Float)((Int)value | ((Int)sign & (Int)(Uint{} + 0x80000000u)));
}

// x * Phi(x), Phi the normal law: its tail is the density times a polynomial in t = 1 / (1 + p |x|), the form of
// Abramowitz and Stegun 26.2.17 with three more terms, fitted to an absolute error of 2.1e-9.
struct Gelu {
  static AIM_FAST_INLINE Float both(Float z, Float& derivative) {
    Float density = 0.3989422804f * exp(-0.5f * z * z);
    Float t = 1.0f / (0.2316419f * magnitude(z) + 1.0f);
    Float p = -0.152514378f * t + 0.500986934f;
    p = p * t - 0.254989764f;
    p = p * t + 0.281491350f;
    p = p * t + 0.220136868f;
    p = p * t + 0.186481201f;
    p = p * t + 0.240981934f;
    p = p * t + 0.230739988f;
    Float tail = density * (p * t);
    // Near zero the tail's rounding would show: the odd series of Phi - 1/2 there.
    Float square = z * z;
    Float near = -7.53028974e-6f * square + 1.13143602e-4f;
    near = near * square - 1.18598466e-3f;
    near = near * square + 9.97317091e-3f;
    near = near * square - 6.64903323e-2f;
    near = near * square + 0.398942279f;
    Float law = select(square < 1.0f, near * z + 0.5f, select(z > 0.0f, 1.0f - tail, tail));
    derivative = z * density + law;
    return z * law;
  }
  static AIM_FAST_INLINE Float value(Float z) {
    Float unused;
    return both(z, unused);
  }
};

// z * sigmoid(u(z)) and its derivative, given u and u'.
AIM_FAST_INLINE Float gated(Float z, Float u, Float slope, Float& derivative) {
  Float s = 1.0f / (exp(-u) + 1.0f);
  derivative = s + z * s * (1.0f - s) * slope;
  return z * s;
}

struct GeluTanh {
  static AIM_FAST_INLINE Float both(Float z, Float& derivative) {
    constexpr float k = 1.5957691216f;  // 2 sqrt(2 / pi): (1 + tanh(u / 2)) / 2 is sigmoid(u)
    Float square = z * z;
    return gated(z, k * z * (0.044715f * square + 1.0f), k * (0.134145f * square + 1.0f), derivative);
  }
  static AIM_FAST_INLINE Float value(Float z) {
    Float unused;
    return both(z, unused);
  }
};

struct QuickGelu {
  static AIM_FAST_INLINE Float both(Float z, Float& derivative) {
    return gated(z, 1.702f * z, splat(1.702f), derivative);
  }
  static AIM_FAST_INLINE Float value(Float z) {
    Float unused;
    return both(z, unused);
  }
};

struct Silu {
  static AIM_FAST_INLINE Float both(Float z, Float& derivative) { return gated(z, z, splat(1.0f), derivative); }
  static AIM_FAST_INLINE Float value(Float z) {
    Float unused;
    return both(z, unused);
  }
};

struct Relu {
  static AIM_FAST_INLINE Float value(Float z) { return select(z < 0.0f, Float{}, z); }  // NaN stays
};

struct LeakyRelu {
  static AIM_FAST_INLINE Float value(Float z) { return select(z > 0.0f, z, 0.01f * z); }
  static AIM_FAST_INLINE Float both(Float z, Float& derivative) {
    derivative = select(z > 0.0f, splat(1.0f), splat(0.01f));
    return value(z);
  }
};

struct Tanh {
  static AIM_FAST_INLINE Float both(Float z, Float& derivative) {
    // Near zero the quotient cancels: a polynomial there (Cephes, relative error 1e-7).
    Float square = z * z;
    Float p = -5.70498872745e-3f * square + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    Float near = z + z * square * p;
    Float s = 1.0f / (exp(2.0f * magnitude(z)) + 1.0f);
    derivative = 4.0f * s * (1.0f - s);  // 1 - tanh^2 would cancel far out
    return select(magnitude(z) < 0.625f, near, with_sign_of(1.0f - 2.0f * s, z));
  }
  static AIM_FAST_INLINE Float value(Float z) {
    Float unused;
    return both(z, unused);
  }
};

struct Identity {
  static AIM_FAST_INLINE Float value(Float z) { return z; }
  static AIM_FAST_INLINE Float both(Float z, Float& derivative) {
    derivative = splat(1.0f);
    return z;
  }
};

// dz = dh * act'(z), and h = act(z).
template <class A>
AIM_FAST_INLINE Float backward(Float z, Float dh, Float& h) {
  Float derivative;
  h = A::both(z, derivative);
  return dh * derivative;
}

// A gate, not a product: an infinite dh is stopped where z is not positive.
template <>
AIM_FAST_INLINE Float backward<Relu>(Float z, Float dh, Float& h) {
  h = Relu::value(z);
  return select(z <= 0.0f, Float{}, dh);
}

// Calls f with the struct of an activation.
template <class F>
AIM_FAST_INLINE void with_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::kGelu:
      return f(Gelu{});
    case Activation::kGeluTanh:
      return f(GeluTanh{});
    case Activation::kQuickGelu:
      return f(QuickGelu{});
    case Activation::kRelu:
      return f(Relu{});
    case Activation::kSilu:
      return f(Silu{});
    case Activation::kTanh:
      return f(Tanh{});
    case Activation::kLeakyRelu:
      return f(LeakyRelu{});
    case Activation::kIdentity:
      return f(Identity{});
  }
}

}  // namespace aim_fast::AIM_FAST_ISA
