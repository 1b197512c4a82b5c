"""act(z) and act'(z) on fp32 tiles, for every activation of the operator; formulas as in csrc/cpu/activation.h.

Each derivative shares the exponential of its function. NaN and inf go through as in the formulas that PyTorch uses.
"""

import triton
import triton.language as tl


@triton.jit
def _normal(b_z):
    """Distribution function and density of the normal law, the first within 1e-7.

    The tail is the density times a polynomial in 1 / (1 + p |z|): the form of Abramowitz and Stegun 26.2.17 with three
    more terms, fitted to 2e-9. libdevice's erf costs twice the instructions and 50 live registers more, and spills.
    """
    b_density = 0.3989422804014327 * tl.exp2(b_z * b_z * -0.7213475204444817)
    b_t = 1.0 / (1.0 + 0.2316419 * tl.abs(b_z))
    b_p = 0.500986934 - 0.152514378 * b_t
    b_p = b_p * b_t - 0.254989764
    b_p = b_p * b_t + 0.281491350
    b_p = b_p * b_t + 0.220136868
    b_p = b_p * b_t + 0.186481201
    b_p = b_p * b_t + 0.240981934
    b_p = b_p * b_t + 0.230739988
    b_tail = b_density * (b_p * b_t)
    return tl.where(b_z > 0, 1.0 - b_tail, b_tail), b_density


@triton.jit
def _sigmoid(b_u):
    return 1.0 / (1.0 + tl.exp2(b_u * -1.4426950408889634))


@triton.jit
def _gate(b_z, ACT: tl.constexpr):
    """u(z) and u'(z) of the activations z * sigmoid(u(z))."""
    if ACT == "gelu_tanh":
        # (1 + tanh(u / 2)) / 2 is sigmoid(u); 2 sqrt(2 / pi) = 1.59577
        b_square = b_z * b_z
        return 1.5957691216 * b_z * (1.0 + 0.044715 * b_square), 1.5957691216 * (1.0 + 0.134145 * b_square)
    elif ACT == "quick_gelu":
        return 1.702 * b_z, 1.702
    else:
        tl.static_assert(ACT == "silu")
        return b_z, 1.0


@triton.jit
def _tanh(b_z):
    """tanh(z), and 1 - tanh^2 in a form that does not cancel far out."""
    # Near zero the quotient cancels: a polynomial there (Cephes, relative error 1e-7).
    b_square = b_z * b_z
    b_p = 2.06390887954e-2 - 5.70498872745e-3 * b_square
    b_p = b_p * b_square - 5.37397155531e-2
    b_p = b_p * b_square + 1.33314422036e-1
    b_p = b_p * b_square - 3.33332819422e-1
    b_s = _sigmoid(-2.0 * tl.abs(b_z))
    b_far = 1.0 - 2.0 * b_s
    b_far = tl.where(b_z < 0, -b_far, b_far)
    return tl.where(b_square < 0.390625, b_z + b_z * b_square * b_p, b_far), 4.0 * b_s * (1.0 - b_s)


@triton.jit
def act(b_z, ACT: tl.constexpr):
    """act(z), fp32, of z's shape."""
    if ACT == "gelu":
        b_law, _ = _normal(b_z)
        return b_z * b_law
    elif ACT == "relu":
        return tl.where(b_z < 0, 0.0, b_z)  # NaN stays
    elif ACT == "leaky_relu":
        return tl.where(b_z > 0, b_z, 0.01 * b_z)
    elif ACT == "tanh":
        b_h, _ = _tanh(b_z)
        return b_h
    elif ACT == "identity":
        return b_z
    else:
        b_u, _ = _gate(b_z, ACT)
        return b_z * _sigmoid(b_u)


@triton.jit
def act_backward(b_dh, b_z, ACT: tl.constexpr):
    """dz = dh * act'(z), and h = act(z), fp32, of z's shape."""
    if ACT == "gelu":
        b_law, b_density = _normal(b_z)
        return b_dh * (b_law + b_z * b_density), b_z * b_law
    elif ACT == "relu":
        # A gate, not a product: an infinite dh is stopped where z is not positive.
        return tl.where(b_z <= 0, 0.0, b_dh), act(b_z, ACT)
    elif ACT == "leaky_relu":
        return b_dh * tl.where(b_z > 0, 1.0, 0.01), act(b_z, ACT)
    elif ACT == "tanh":
        b_h, b_slope = _tanh(b_z)
        return b_dh * b_slope, b_h
    elif ACT == "identity":
        return b_dh, b_z
    else:
        b_u, b_du = _gate(b_z, ACT)
        b_s = _sigmoid(b_u)
        return b_dh * (b_s + b_z * b_s * (1.0 - b_s) * b_du), b_z * b_s
