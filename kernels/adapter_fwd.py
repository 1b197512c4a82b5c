"""Fused adapter, forward.

    y = alpha * scale * row_scale * (act(x @ w1.T + b1) @ w2.T + b2)  [+ x]  [+ residual]

Shapes    x, residual, y [M, D], rows as in blocks.py; w1 [H, D]; b1 [H]; w2 [D, H]; b2 [D]; scale [1] or [D];
          row_scale [M], rows as in blocks.py; z [M, H] in the compute dtype. A pointer that is None leaves its term
          out: z_ptr where z is not kept, y_ptr where z alone is wanted.
Tiling    program (i, j) owns BLOCK_M rows and, of y, the j-th of SPLIT spans of columns: with few rows the GPU is
          filled by spans, each of which computes z anew. z and h stay in registers.
Flow      1. per BLOCK_K columns: z += x_tile @ w1_tile.T                          x from memory
          2. h = act(z + b1), rounded once                                        registers
          3. per BLOCK_D columns: y_tile = factors * (h @ w2_tile.T + b2) [+ x] [+ residual]     x again, from L2
Memory    each of x, residual, y and z once; the weights once per program, from L2: 4 D H / BLOCK_M bytes a row in bf16
Work      4 M D H FLOP
Rounding  x and the weights to COMPUTE as they are loaded; h; y. Everything else is fp32.
Source    Adapter of AIM (Yang et al., ICLR 2023)
"""

import triton
import triton.language as tl

from aim_fast.kernels.activation import act
from aim_fast.kernels.blocks import add_down, add_up, first_row, load, row_offsets, zeros


@triton.jit
def _hidden(
    b_z,
    b1_ptr,
    z_ptr,
    o_m,
    m_z,
    START: tl.constexpr,
    WIDTH: tl.constexpr,
    H: tl.constexpr,
    ACT: tl.constexpr,
    COMPUTE: tl.constexpr,
    WANT_Y: tl.constexpr,
):
    """Step 2 for one part: h [BLOCK_M, WIDTH] in COMPUTE, z stored on the way."""
    if WIDTH == 0:
        return b_z
    else:
        o_h = START + tl.arange(0, WIDTH)[None, :]
        RAGGED_H: tl.constexpr = START + WIDTH > H
        if b1_ptr is not None:
            b_z += load(b1_ptr, o_h, o_h < H, o_h < H, RAGGED_H, False).to(tl.float32)  # [BLOCK_M, WIDTH]
        if z_ptr is not None:
            tl.store(z_ptr + o_m[:, None] * H + o_h, b_z.to(COMPUTE), mask=m_z[:, None] & (o_h < H))
        if WANT_Y:
            b_h = act(b_z, ACT)
            if RAGGED_H:
                # An infinite x times the padding of w1 is NaN, and would be NaN times the padding of w2.
                b_h = tl.where(o_h < H, b_h, 0.0)
            return b_h.to(COMPUTE)
        else:
            return b_z


@triton.jit(do_not_specialize=["M", "n1", "n2"])
def adapter_fwd(
    x_ptr,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    scale_ptr,
    row_scale_ptr,
    residual_ptr,
    y_ptr,
    z_ptr,
    M,
    n1,
    n2,
    stride_x0,
    stride_x1,
    stride_x2,
    stride_s0,
    stride_s1,
    stride_s2,
    stride_r0,
    stride_r1,
    stride_r2,
    stride_y0,
    stride_y1,
    stride_y2,
    alpha,
    D: tl.constexpr,
    H: tl.constexpr,
    P0: tl.constexpr,
    P1: tl.constexpr,
    P2: tl.constexpr,
    P3: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
    DIMS: tl.constexpr,
    ACT: tl.constexpr,
    SKIP: tl.constexpr,
    WIDE_SCALE: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    S1: tl.constexpr = P0
    S2: tl.constexpr = P0 + P1
    S3: tl.constexpr = P0 + P1 + P2
    RAGGED_K: tl.constexpr = D % BLOCK_K != 0
    WANT_Y: tl.constexpr = y_ptr is not None
    i_m = tl.program_id(0).to(tl.int64) * BLOCK_M
    o_m = tl.arange(0, BLOCK_M)
    m_m = o_m < tl.minimum(M - i_m, BLOCK_M).to(tl.int32)  # [BLOCK_M]
    x_ptr = first_row(x_ptr, i_m, stride_x2, DIMS)
    o_x = row_offsets(i_m, o_m, n1, n2, stride_x0, stride_x1, stride_x2, DIMS)[:, None]
    if z_ptr is not None:
        z_ptr += i_m * H

    # 1. z = x @ w1.T
    b_z0 = zeros(BLOCK_M, P0)
    b_z1 = zeros(BLOCK_M, P1)
    b_z2 = zeros(BLOCK_M, P2)
    b_z3 = zeros(BLOCK_M, P3)
    for i_d in tl.range(0, D, BLOCK_K, num_stages=STAGES):
        o_d = i_d + tl.arange(0, BLOCK_K)
        m_d = o_d < D
        b_x = load(x_ptr, o_x + o_d[None, :], m_m[:, None], m_d[None, :], True, RAGGED_K).to(COMPUTE)
        b_z0 = add_down(b_z0, b_x, w1_ptr, o_d, m_d, 1, D, 0, P0, H, RAGGED_K, COMPUTE, PRECISION)
        b_z1 = add_down(b_z1, b_x, w1_ptr, o_d, m_d, 1, D, S1, P1, H, RAGGED_K, COMPUTE, PRECISION)
        b_z2 = add_down(b_z2, b_x, w1_ptr, o_d, m_d, 1, D, S2, P2, H, RAGGED_K, COMPUTE, PRECISION)
        b_z3 = add_down(b_z3, b_x, w1_ptr, o_d, m_d, 1, D, S3, P3, H, RAGGED_K, COMPUTE, PRECISION)

    # 2. h = act(z + b1); every span has z, the first one stores it
    m_z = m_m
    if SPLIT > 1:
        m_z = m_m & (tl.program_id(1) == 0)
    b_h0 = _hidden(b_z0, b1_ptr, z_ptr, o_m, m_z, 0, P0, H, ACT, COMPUTE, WANT_Y)
    b_h1 = _hidden(b_z1, b1_ptr, z_ptr, o_m, m_z, S1, P1, H, ACT, COMPUTE, WANT_Y)
    b_h2 = _hidden(b_z2, b1_ptr, z_ptr, o_m, m_z, S2, P2, H, ACT, COMPUTE, WANT_Y)
    b_h3 = _hidden(b_z3, b1_ptr, z_ptr, o_m, m_z, S3, P3, H, ACT, COMPUTE, WANT_Y)

    # 3. y = factors * (h @ w2.T + b2) + x + residual
    if WANT_Y:
        SPAN: tl.constexpr = (D + SPLIT * BLOCK_D - 1) // (SPLIT * BLOCK_D) * BLOCK_D
        RAGGED_D: tl.constexpr = SPLIT * SPAN != D
        y_ptr = first_row(y_ptr, i_m, stride_y2, DIMS)
        o_y = row_offsets(i_m, o_m, n1, n2, stride_y0, stride_y1, stride_y2, DIMS)[:, None]
        if residual_ptr is not None:
            residual_ptr = first_row(residual_ptr, i_m, stride_r2, DIMS)
            o_r = row_offsets(i_m, o_m, n1, n2, stride_r0, stride_r1, stride_r2, DIMS)[:, None]
        b_factor = alpha
        if scale_ptr is not None and not WIDE_SCALE:
            b_factor *= tl.load(scale_ptr).to(tl.float32)
        if row_scale_ptr is not None:
            row_scale_ptr = first_row(row_scale_ptr, i_m, stride_s2, DIMS)
            o_s = row_offsets(i_m, o_m, n1, n2, stride_s0, stride_s1, stride_s2, DIMS)
            b_factor *= tl.load(row_scale_ptr + o_s, mask=m_m, other=0.0).to(tl.float32)[:, None]  # [BLOCK_M, 1]
        for i_d in tl.range(0, SPAN, BLOCK_D, num_stages=STAGES):
            o_d = tl.program_id(1) * SPAN + i_d + tl.arange(0, BLOCK_D)
            m_d = o_d < D
            b_y = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
            b_y = add_up(b_y, b_h0, w2_ptr, o_d, m_d, 1, H, 0, P0, H, RAGGED_D, COMPUTE, PRECISION)
            b_y = add_up(b_y, b_h1, w2_ptr, o_d, m_d, 1, H, S1, P1, H, RAGGED_D, COMPUTE, PRECISION)
            b_y = add_up(b_y, b_h2, w2_ptr, o_d, m_d, 1, H, S2, P2, H, RAGGED_D, COMPUTE, PRECISION)
            b_y = add_up(b_y, b_h3, w2_ptr, o_d, m_d, 1, H, S3, P3, H, RAGGED_D, COMPUTE, PRECISION)
            if b2_ptr is not None:
                b_y += load(b2_ptr, o_d, m_d, m_d, RAGGED_D, False).to(tl.float32)[None, :]
            b_y *= b_factor
            if WIDE_SCALE:
                b_y *= load(scale_ptr, o_d, m_d, m_d, RAGGED_D, False).to(tl.float32)[None, :]
            if SKIP:
                b_y += load(x_ptr, o_x + o_d[None, :], m_m[:, None], m_d[None, :], True, RAGGED_D).to(tl.float32)
            if residual_ptr is not None:
                o = o_r + o_d[None, :]
                b_y += load(residual_ptr, o, m_m[:, None], m_d[None, :], True, RAGGED_D).to(tl.float32)
            m_y = m_m[:, None] & m_d[None, :] if RAGGED_D else m_m[:, None]
            tl.store(y_ptr + o_y + o_d[None, :], b_y.to(y_ptr.dtype.element_ty), mask=m_y)
