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

// The polynomial with these coefficients, highest power first, at several t: each waits for itself at every power, so
// that they take turns.
template <int N, int K>
AIM_FAST_INLINE void polynomial(const float (&coefficients)[N], const Float (&t)[K], Float (&p)[K]) {
  AIM_FAST_UNROLL
  for (int k = 0; k < K; ++k) p[k] = splat(coefficients[0]);
  AIM_FAST_UNROLL
  for (int i = 1; i < N; ++i) {
    AIM_FAST_UNROLL
    for (int k = 0; k < K; ++k) p[k] = p[k] * t[k] + coefficients[i];
  }
}

// z * Phi(z), Phi the normal law. Phi and the derivative Phi + z phi are 1/2 and an odd function: z times a polynomial
// in z^2, here of t = 2 (z / bound)^2 - 1 in [-1, 1], and 0 or 1 to the nearest float or two beyond the bound. Least
// maximum fits; largest errors in float arithmetic 1.3e-7 and 2.2e-7, those of eager, which cancels in the left tail
// too. Measured: EPYC (Zen 4), AVX-512: 22 cycles a vector, where an exponential and a quotient took 46. Xeon (Emerald
// Rapids): 29 cycles a vector two at a time, 15 four at a time.
struct Gelu {
  static constexpr float kBound = 5.75f;
  static constexpr float kLaw[] = {-5.37513057e-4f, 1.33656443e-3f, -7.69402250e-4f, 6.78945740e-4f,
                                   -3.64542939e-3f, 6.79440098e-3f, -8.63259658e-3f, 1.18773812e-2f,
                                   -1.67762134e-2f, 2.17210688e-2f, -2.65644100e-2f, 3.17081586e-2f,
                                   -3.76339294e-2f, 4.58636172e-2f, -6.14333265e-2f, 1.22969203e-1f};
  static constexpr float kDerivative[] = {1.08141557e-3f, -2.87382072e-3f, 1.56595558e-3f, -1.11924729e-3f,
                                          9.37956292e-3f, -1.90293640e-2f, 2.36908998e-2f, -3.24951671e-2f,
                                          4.76384982e-2f, -6.05534837e-2f, 6.79188967e-2f, -7.02477172e-2f,
                                          6.70235381e-2f, -5.95726110e-2f, 5.16818613e-2f, -4.72911112e-2f,
                                          4.93680872e-2f, -6.22814670e-2f, 1.23071820e-1f};

  // 1/2 + z * p(t) within the bound; a NaN is neither within nor beyond it and stays.
  template <int N, int K>
  static AIM_FAST_INLINE void sigmoidal(const float (&p)[N], const Float (&z)[K], Float (&out)[K]) {
    Float t[K];
    AIM_FAST_UNROLL
    for (int k = 0; k < K; ++k) t[k] = z[k] * z[k] * (2.0f / (kBound * kBound)) - 1.0f;
    polynomial(p, t, out);
    AIM_FAST_UNROLL
    for (int k = 0; k < K; ++k) {
      const Float beyond = select(z[k] > 0.0f, splat(1.0f), Float{});
      out[k] = select(z[k] * z[k] > kBound * kBound, beyond, z[k] * out[k] + 0.5f);
    }
  }
  template <int K>
  static AIM_FAST_INLINE void both(Float (&z)[K], Float (&derivative)[K]) {
    sigmoidal(kDerivative, z, derivative);
    AIM_FAST_UNROLL
    for (int k = 0; k < K; ++k) derivative[k] += z[k] * 0.0f;  // NaN for an infinite z, as z phi(z) is in eager
    value(z);
  }
  template <int K>
  static AIM_FAST_INLINE void value(Float (&z)[K]) {
    Float law[K];
    sigmoidal(kLaw, z, law);
    AIM_FAST_UNROLL
    for (int k = 0; k < K; ++k) z[k] *= law[k];
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

// z becomes act(z).
template <class A, int K>
AIM_FAST_INLINE void activate(Float (&z)[K]) {
  if constexpr (requires { A::value(z); }) {
    A::value(z);
  } else {
    AIM_FAST_UNROLL
    for (int k = 0; k < K; ++k) z[k] = A::value(z[k]);
  }
}

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

// dh becomes dz, and z h.
template <class A, int K>
AIM_FAST_INLINE void activate_backward(Float (&z)[K], Float (&dh)[K]) {
  if constexpr (requires { A::both(z, dh); }) {
    Float derivative[K];
    A::both(z, derivative);
    AIM_FAST_UNROLL
    for (int k = 0; k < K; ++k) dh[k] *= derivative[k];
  } else {
    AIM_FAST_UNROLL
    for (int k = 0; k < K; ++k) {
      Float h;
      dh[k] = backward<A>(z[k], dh[k], h);
      z[k] = h;
    }
  }
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
