"""A kernel that does nothing but act and act' of 8192 numbers; imports Triton, so imported where that is wanted."""

import triton
import triton.language as tl

from aim_fast.kernels.activation import act, act_backward


@triton.jit
def pointwise(z_ptr, h_ptr, again_ptr, slope_ptr, ACT: tl.constexpr):
    o = tl.arange(0, 8192)
    b_z = tl.load(z_ptr + o)
    b_slope, b_h = act_backward(tl.full((8192,), 1.0, tl.float32), b_z, ACT)
    tl.store(h_ptr + o, b_h)
    tl.store(slope_ptr + o, b_slope)
    tl.store(again_ptr + o, act(b_z, ACT))
