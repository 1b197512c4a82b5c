"""Fused adapter, backward: the gradient of x, and what those of the weights are made of (K1).

    dh = (scale * dy) @ w2;  dz = alpha * row_scale * dh * act'(z);  dx = dz @ w1 [+ dy];  h = row_scale * act(z)

Shapes    dy, dx [M, D], rows as in blocks.py; z, dz, h [M, H] in the compute dtype; w1 [H, D]; w2 [D, H];
          scale [1] or [D]; row_scale [M], rows as in blocks.py; ws_db1 [tiles, H] and ws_db2 [tiles, D] fp32: the sums
          over a tile's rows of dz and of row_scale * dy. A pointer that is None says that nobody asked for that result:
          its product, its loads and its stores are left out. Without dx, step 3 only adds up dy; without dx, dz and
          ws_db1 there is no step 1.
Tiling    program (i, j) owns BLOCK_M rows and, of dx, the j-th of SPLIT spans of columns, as in adapter_fwd.py
Flow      1. per BLOCK_K columns: dh += dy_tile @ w2_tile                                  dy from memory
          2. dz, h and the tile's share of db1                                            z from memory
          3. per BLOCK_D columns: dx_tile = dz @ w1_tile [+ dy], the tile's share of db2  dy again, from L2
Memory    each of dy, z, dz, h and dx once; the weights once per program, from L2
Work      4 M D H FLOP
Rounding  dy and the weights to COMPUTE as they are loaded; dz; h; dx. Everything else is fp32.
Source    Adapter of AIM (Yang et al., ICLR 2023)
"""

import triton
import triton.language as tl

from aim_fast.kernels.activation import act_backward
from aim_fast.kernels.blocks import add_down, add_up, first_row, load, row_offsets, zeros


@triton.jit
def _through_act(
    b_dh,
    z_ptr,
    dz_ptr,
    h_ptr,
    ws_db1_ptr,
    o_m,
    m_m,
    b_factor,
    b_row_scale,
    START: tl.constexpr,
    WIDTH: tl.constexpr,
    H: tl.constexpr,
    SPLIT: tl.constexpr,
    WANT_DH: tl.constexpr,
    ACT: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Step 2 of K1 for one part: dz [BLOCK_M, WIDTH] in COMPUTE; dz, h and the share of db1 are stored on the way."""
    if WIDTH == 0:
        return b_dh
    else:
        o_h = START + tl.arange(0, WIDTH)
        m_h = o_h < H
        RAGGED_H: tl.constexpr = START + WIDTH > H
        o = o_m[:, None] * H + o_h[None, :]
        # Every span of columns computes dz; the first one stores it.
        m_first = (tl.program_id(1) == 0) if SPLIT > 1 else True
        m_store = m_m[:, None] & m_h[None, :] & m_first if RAGGED_H or SPLIT > 1 else m_m[:, None]
        b_z = load(z_ptr, o, m_m[:, None], m_h[None, :], True, RAGGED_H).to(tl.float32)  # [BLOCK_M, WIDTH]
        b_dz, b_h = act_backward(b_dh * b_factor, b_z, ACT)
        b_out = b_dh
        if WANT_DH:
            if RAGGED_H:
                # An infinite dy times the padding of w2 is NaN, and would be NaN times the padding of w1.
                b_dz = tl.where(m_h[None, :], b_dz, 0.0)
            b_out = b_dz.to(COMPUTE)
        if dz_ptr is not None:
            tl.store(dz_ptr + o, b_out, mask=m_store)
        if h_ptr is not None:
            if WANT_DH:
                # Always b_h; naming dh keeps Triton from computing act a second time, in the layout of the store.
                b_h = tl.where(b_dh > float("inf"), 0.0, b_h)
            tl.store(h_ptr + o, (b_h * b_row_scale).to(COMPUTE), mask=m_store)
        if ws_db1_ptr is not None:
            b_db1 = tl.sum(tl.where(m_m[:, None], b_dz, 0.0), 0)  # [WIDTH]
            tl.store(ws_db1_ptr + tl.program_id(0).to(tl.int64) * H + o_h, b_db1, mask=m_h & m_first)
        return b_out


@triton.jit(do_not_specialize=["M", "n1", "n2"])
def adapter_bwd_dx(
    dy_ptr,
    z_ptr,
    w1_ptr,
    w2_ptr,
    scale_ptr,
    row_scale_ptr,
    dx_ptr,
    dz_ptr,
    h_ptr,
    ws_db1_ptr,
    ws_db2_ptr,
    M,
    n1,
    n2,
    stride_dy0,
    stride_dy1,
    stride_dy2,
    stride_s0,
    stride_s1,
    stride_s2,
    stride_dx0,
    stride_dx1,
    stride_dx2,
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
    WANT_DX: tl.constexpr = dx_ptr is not None
    WANT_DB2: tl.constexpr = ws_db2_ptr is not None
    # The parentheses are for Triton 3.2.
    WANT_DH: tl.constexpr = WANT_DX or (dz_ptr is not None or ws_db1_ptr is not None)
    i_m = tl.program_id(0).to(tl.int64) * BLOCK_M
    o_m = tl.arange(0, BLOCK_M)
    m_m = o_m < tl.minimum(M - i_m, BLOCK_M).to(tl.int32)  # [BLOCK_M]
    dy_ptr = first_row(dy_ptr, i_m, stride_dy2, DIMS)
    o_dy = row_offsets(i_m, o_m, n1, n2, stride_dy0, stride_dy1, stride_dy2, DIMS)[:, None]
    b_row_scale = 1.0
    if row_scale_ptr is not None:
        row_scale_ptr = first_row(row_scale_ptr, i_m, stride_s2, DIMS)
        o_s = row_offsets(i_m, o_m, n1, n2, stride_s0, stride_s1, stride_s2, DIMS)
        b_row_scale = tl.load(row_scale_ptr + o_s, mask=m_m, other=0.0).to(tl.float32)[:, None]  # [BLOCK_M, 1]

    if WANT_DH or h_ptr is not None:
        # 1. dh = (scale * dy) @ w2
        b_dh0 = zeros(BLOCK_M, P0)
        b_dh1 = zeros(BLOCK_M, P1)
        b_dh2 = zeros(BLOCK_M, P2)
        b_dh3 = zeros(BLOCK_M, P3)
        if WANT_DH:
            for i_d in tl.range(0, D, BLOCK_K, num_stages=STAGES):
                o_d = i_d + tl.arange(0, BLOCK_K)
                m_d = o_d < D
                b_dy = load(dy_ptr, o_dy + o_d[None, :], m_m[:, None], m_d[None, :], True, RAGGED_K)
                if WIDE_SCALE:
                    b_scale = load(scale_ptr, o_d, m_d, m_d, RAGGED_K, False).to(tl.float32)[None, :]
                    b_dy = b_dy.to(tl.float32) * b_scale
                b_dy = b_dy.to(COMPUTE)
                b_dh0 = add_down(b_dh0, b_dy, w2_ptr, o_d, m_d, H, 1, 0, P0, H, RAGGED_K, COMPUTE, PRECISION)
                b_dh1 = add_down(b_dh1, b_dy, w2_ptr, o_d, m_d, H, 1, S1, P1, H, RAGGED_K, COMPUTE, PRECISION)
                b_dh2 = add_down(b_dh2, b_dy, w2_ptr, o_d, m_d, H, 1, S2, P2, H, RAGGED_K, COMPUTE, PRECISION)
                b_dh3 = add_down(b_dh3, b_dy, w2_ptr, o_d, m_d, H, 1, S3, P3, H, RAGGED_K, COMPUTE, PRECISION)

        # 2. dz = dh * act'(z), h = row_scale * act(z)
        b_factor = alpha * b_row_scale
        if scale_ptr is not None and not WIDE_SCALE:
            b_factor *= tl.load(scale_ptr).to(tl.float32)
        z_ptr += i_m * H
        if dz_ptr is not None:
            dz_ptr += i_m * H
        if h_ptr is not None:
            h_ptr += i_m * H
        b_dz0 = _through_act(
            b_dh0,
            z_ptr,
            dz_ptr,
            h_ptr,
            ws_db1_ptr,
            o_m,
            m_m,
            b_factor,
            b_row_scale,
            0,
            P0,
            H,
            SPLIT,
            WANT_DH,
            ACT,
            COMPUTE,
        )
        b_dz1 = _through_act(
            b_dh1,
            z_ptr,
            dz_ptr,
            h_ptr,
            ws_db1_ptr,
            o_m,
            m_m,
            b_factor,
            b_row_scale,
            S1,
            P1,
            H,
            SPLIT,
            WANT_DH,
            ACT,
            COMPUTE,
        )
        b_dz2 = _through_act(
            b_dh2,
            z_ptr,
            dz_ptr,
            h_ptr,
            ws_db1_ptr,
            o_m,
            m_m,
            b_factor,
            b_row_scale,
            S2,
            P2,
            H,
            SPLIT,
            WANT_DH,
            ACT,
            COMPUTE,
        )
        b_dz3 = _through_act(
            b_dh3,
            z_ptr,
            dz_ptr,
            h_ptr,
            ws_db1_ptr,
            o_m,
            m_m,
            b_factor,
            b_row_scale,
            S3,
            P3,
            H,
            SPLIT,
            WANT_DH,
            ACT,
            COMPUTE,
        )

    # 3. dx = dz @ w1 + dy, and the tile's share of db2
    if WANT_DX or WANT_DB2:
        SPAN: tl.constexpr = (D + SPLIT * BLOCK_D - 1) // (SPLIT * BLOCK_D) * BLOCK_D
        RAGGED_D: tl.constexpr = SPLIT * SPAN != D
        if WANT_DX:
            dx_ptr = first_row(dx_ptr, i_m, stride_dx2, DIMS)
            o_dx = row_offsets(i_m, o_m, n1, n2, stride_dx0, stride_dx1, stride_dx2, DIMS)[:, None]
        for i_d in tl.range(0, SPAN, BLOCK_D, num_stages=STAGES):
            o_d = tl.program_id(1) * SPAN + i_d + tl.arange(0, BLOCK_D)
            m_d = o_d < D
            if SKIP or WANT_DB2:
                b_dy = load(dy_ptr, o_dy + o_d[None, :], m_m[:, None], m_d[None, :], True, RAGGED_D).to(tl.float32)
            if WANT_DX:
                b_dx = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
                b_dx = add_up(b_dx, b_dz0, w1_ptr, o_d, m_d, D, 1, 0, P0, H, RAGGED_D, COMPUTE, PRECISION)
                b_dx = add_up(b_dx, b_dz1, w1_ptr, o_d, m_d, D, 1, S1, P1, H, RAGGED_D, COMPUTE, PRECISION)
                b_dx = add_up(b_dx, b_dz2, w1_ptr, o_d, m_d, D, 1, S2, P2, H, RAGGED_D, COMPUTE, PRECISION)
                b_dx = add_up(b_dx, b_dz3, w1_ptr, o_d, m_d, D, 1, S3, P3, H, RAGGED_D, COMPUTE, PRECISION)
                if SKIP:
                    b_dx += b_dy
                m_dx = m_m[:, None] & m_d[None, :] if RAGGED_D else m_m[:, None]
                tl.store(dx_ptr + o_dx + o_d[None, :], b_dx.to(dx_ptr.dtype.element_ty), mask=m_dx)
            if WANT_DB2:
                # Rows outside are 0 in dy, but 0 times an infinite row_scale would not be: theirs is 0 too.
                b_db2 = tl.sum(b_dy * b_row_scale, 0)  # [BLOCK_D]
                tl.store(ws_db2_ptr + tl.program_id(0).to(tl.int64) * D + o_d, b_db2, mask=m_d)
