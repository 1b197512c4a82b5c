"""Fused adapter, backward: the gradients of the weights, the biases and the scale (K2), from what K1 left.

    g = alpha * dy.T @ h;  dw1 = (x.T @ dz).T;  dw2 = scale * g;  dscale = sum over H of w2 * g, + b2 * sum of dy
    (h has row_scale in it, and so has the sum of dy)

A learned scale costs no product of its own: with f = h @ w2.T + b2, the sum over the rows of dy * f is that of w2 * g.

Kernels   adapter_bwd_dw    program (i, j, k) owns BLOCK_D columns of D and the k-th slice of `rows` rows, for side j:
                            x.T @ dz or dy.T @ h, to ws_dw1 or ws_dw2 [slices, D, H] in fp32
          adapter_bwd_sum   program (i, j) adds the partial sums of BLOCK_D columns up for side j, in their fixed order,
                            and applies the factors that are the same for all rows
Shapes    x, dy [M, D], rows as in blocks.py; dz, h [M, H] in the compute dtype; ws_db1 [tiles, H] and
          ws_db2 [tiles, D] from K1; dscale [D] fp32. A pointer that is None says that nobody asked for that result.
Memory    x and dy once, dz and h once per D / BLOCK_D, from L2; the workspace out and in
Work      4 M D H FLOP
Rounding  x and dy to COMPUTE as they are loaded; the results once, at the end. A slice is summed row by row, so it is
          short (tiling.slice_rows), in fp32 most of all. No atomics: the same bits every time.
"""

import triton
import triton.language as tl

from aim_fast.kernels.blocks import add_down, first_row, load, row_offsets, zeros


@triton.jit
def _side(
    a_ptr,
    b_ptr,
    ws_ptr,
    i_m,
    end_m,
    n1,
    n2,
    stride_0,
    stride_1,
    stride_2,
    D: tl.constexpr,
    H: tl.constexpr,
    P0: tl.constexpr,
    P1: tl.constexpr,
    P2: tl.constexpr,
    P3: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
    DIMS: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """rows.T @ a over the rows [i_m, end_m): b_ptr is the rows' [M, D], a_ptr [M, H]; to ws_ptr [slices, D, H]."""
    S1: tl.constexpr = P0
    S2: tl.constexpr = P0 + P1
    S3: tl.constexpr = P0 + P1 + P2
    RAGGED_D: tl.constexpr = D % BLOCK_D != 0
    o_d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = (o_d < D)[:, None]
    b_w0 = zeros(BLOCK_D, P0)
    b_w1 = zeros(BLOCK_D, P1)
    b_w2 = zeros(BLOCK_D, P2)
    b_w3 = zeros(BLOCK_D, P3)
    a_ptr += i_m * H
    b_ptr = first_row(b_ptr, i_m, stride_2, DIMS)
    o_m = tl.arange(0, BLOCK_M)
    # 32 bits: a slice has fewer rows than that.
    count = (end_m - i_m).to(tl.int32)
    for i in tl.range(0, count, BLOCK_M, num_stages=STAGES):
        m_m = o_m < count - i
        o_b = row_offsets(i_m + i, o_m, n1, n2, stride_0, stride_1, stride_2, DIMS)[None, :]
        # The tile is read transposed: tl.trans of a plain tile keeps sm_80 from fetching it ahead.
        b_b = load(b_ptr, o_d[:, None] + o_b, m_m[None, :], m_d, True, RAGGED_D).to(COMPUTE)  # [BLOCK_D, BLOCK_M]
        b_w0 = add_down(b_w0, b_b, a_ptr, o_m, m_m, H, 1, 0, P0, H, True, COMPUTE, PRECISION)
        b_w1 = add_down(b_w1, b_b, a_ptr, o_m, m_m, H, 1, S1, P1, H, True, COMPUTE, PRECISION)
        b_w2 = add_down(b_w2, b_b, a_ptr, o_m, m_m, H, 1, S2, P2, H, True, COMPUTE, PRECISION)
        b_w3 = add_down(b_w3, b_b, a_ptr, o_m, m_m, H, 1, S3, P3, H, True, COMPUTE, PRECISION)
        a_ptr += BLOCK_M * H
        if DIMS == 1:
            b_ptr += BLOCK_M * stride_2
    ws_ptr += tl.program_id(2).to(tl.int64) * (D * H)
    _store_part(ws_ptr, b_w0, o_d, m_d, 0, P0, H, RAGGED_D)
    _store_part(ws_ptr, b_w1, o_d, m_d, S1, P1, H, RAGGED_D)
    _store_part(ws_ptr, b_w2, o_d, m_d, S2, P2, H, RAGGED_D)
    _store_part(ws_ptr, b_w3, o_d, m_d, S3, P3, H, RAGGED_D)


@triton.jit
def _store_part(
    ws_ptr, b_w, o_d, m_d, START: tl.constexpr, WIDTH: tl.constexpr, H: tl.constexpr, RAGGED_D: tl.constexpr
):
    if WIDTH > 0:
        o_h = START + tl.arange(0, WIDTH)[None, :]
        tl.store(ws_ptr + o_d[:, None] * H + o_h, b_w, mask=m_d & (o_h < H) if RAGGED_D or START + WIDTH > H else None)


@triton.jit(do_not_specialize=["M", "rows", "n1", "n2"])
def adapter_bwd_dw(
    x_ptr,
    dz_ptr,
    dy_ptr,
    h_ptr,
    ws_dw1_ptr,
    ws_dw2_ptr,
    M,
    rows,
    n1,
    n2,
    stride_x0,
    stride_x1,
    stride_x2,
    stride_dy0,
    stride_dy1,
    stride_dy2,
    D: tl.constexpr,
    H: tl.constexpr,
    P0: tl.constexpr,
    P1: tl.constexpr,
    P2: tl.constexpr,
    P3: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
    DIMS: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_m = tl.program_id(2).to(tl.int64) * rows
    end_m = tl.minimum(i_m + rows, M)
    FIRST: tl.constexpr = 1 if ws_dw1_ptr is None else 0
    i_side = tl.program_id(1) + FIRST
    # The sides are programs of one launch, apart even where they could share code: x and dy may differ in dtype.
    if ws_dw1_ptr is not None:
        if i_side == 0:
            _side(
                dz_ptr, x_ptr, ws_dw1_ptr, i_m, end_m, n1, n2, stride_x0, stride_x1, stride_x2,
                D, H, P0, P1, P2, P3, BLOCK_M, BLOCK_D, STAGES, DIMS, COMPUTE, PRECISION,
            )  # fmt: skip
    if ws_dw2_ptr is not None:
        if i_side == 1:
            _side(
                h_ptr, dy_ptr, ws_dw2_ptr, i_m, end_m, n1, n2, stride_dy0, stride_dy1, stride_dy2,
                D, H, P0, P1, P2, P3, BLOCK_M, BLOCK_D, STAGES, DIMS, COMPUTE, PRECISION,
            )  # fmt: skip


@triton.jit
def _sum_rows(ptr, o, m, rows, stride, BLOCK_R: tl.constexpr, BLOCK: tl.constexpr):
    """[BLOCK] sums of the columns o of [rows, stride], always in the same order."""
    o_r = tl.arange(0, BLOCK_R)[:, None]
    b_sum = tl.zeros((BLOCK_R, BLOCK), tl.float32)
    for i in tl.range(0, rows, BLOCK_R):
        o_row = (i + o_r).to(tl.int64)
        b_sum += tl.load(ptr + o_row * stride + o[None, :], mask=(o_row < rows) & m[None, :], other=0.0)
    return tl.sum(b_sum, 0)


@triton.jit
def _sum_slices(
    ws_ptr, o, m, slices, SIZE: tl.constexpr, BLOCK_S: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """[ROWS, COLS] sums over the slices of [slices, SIZE] at the offsets o, always in the same order."""
    b_sum = tl.zeros((ROWS, COLS), tl.float32)
    o_s = tl.arange(0, BLOCK_S)[:, None, None]
    # Several slices a turn: a turn waits for memory once.
    for i in tl.range(0, slices, BLOCK_S):
        o_slice = (i + o_s).to(tl.int64)
        b_sum += tl.sum(
            tl.load(ws_ptr + o_slice * SIZE + o[None, :, :], mask=(o_slice < slices) & m[None, :, :], other=0.0), 0
        )
    return b_sum


@triton.jit(do_not_specialize=["slices", "tiles"])
def adapter_bwd_sum(
    ws_dw1_ptr,
    ws_dw2_ptr,
    ws_db1_ptr,
    ws_db2_ptr,
    w2_ptr,
    b2_ptr,
    scale_ptr,
    dw1_ptr,
    db1_ptr,
    dw2_ptr,
    db2_ptr,
    dscale_ptr,
    slices,
    tiles,
    alpha,
    D: tl.constexpr,
    H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    WIDE_SCALE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    # grid (cdiv(max(D, H), BLOCK_D), 2)
    o_d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < D
    if tl.program_id(1) == 0:
        if dw1_ptr is not None:
            for i_h in tl.range(0, H, BLOCK_H):
                o_h = i_h + tl.arange(0, BLOCK_H)
                m = m_d[:, None] & (o_h < H)[None, :]
                b_w = _sum_slices(
                    ws_dw1_ptr, o_d[:, None] * H + o_h[None, :], m, slices, D * H, BLOCK_S, BLOCK_D, BLOCK_H
                )
                tl.store(dw1_ptr + o_h[None, :] * D + o_d[:, None], b_w.to(dw1_ptr.dtype.element_ty), mask=m)
        if db1_ptr is not None:
            # The same block of columns, of H here.
            b_b = _sum_rows(ws_db1_ptr, o_d, o_d < H, tiles, H, BLOCK_R, BLOCK_D)
            tl.store(db1_ptr + o_d, b_b.to(db1_ptr.dtype.element_ty), mask=o_d < H)
    else:
        b_scale = tl.full((BLOCK_D,), 1.0, tl.float32)
        if WIDE_SCALE:
            b_scale = tl.load(scale_ptr + o_d, mask=m_d, other=0.0).to(tl.float32)
        elif scale_ptr is not None:
            b_scale *= tl.load(scale_ptr).to(tl.float32)
        b_dscale = tl.zeros((BLOCK_D,), tl.float32)
        if ws_dw2_ptr is not None:
            for i_h in tl.range(0, H, BLOCK_H):
                o_h = i_h + tl.arange(0, BLOCK_H)
                m = m_d[:, None] & (o_h < H)[None, :]
                o = o_d[:, None] * H + o_h[None, :]
                b_g = alpha * _sum_slices(ws_dw2_ptr, o, m, slices, D * H, BLOCK_S, BLOCK_D, BLOCK_H)
                if dw2_ptr is not None:
                    b_w = b_scale[:, None] * b_g
                    tl.store(dw2_ptr + o, b_w.to(dw2_ptr.dtype.element_ty), mask=m)
                if dscale_ptr is not None:
                    b_w2 = tl.load(w2_ptr + o, mask=m, other=0.0).to(COMPUTE).to(tl.float32)
                    b_dscale += tl.sum(b_w2 * b_g, 1)
        if ws_db2_ptr is not None:
            b_b = alpha * _sum_rows(ws_db2_ptr, o_d, m_d, tiles, D, BLOCK_R, BLOCK_D)
            if db2_ptr is not None:
                tl.store(db2_ptr + o_d, (b_scale * b_b).to(db2_ptr.dtype.element_ty), mask=m_d)
            if dscale_ptr is not None and b2_ptr is not None:
                b_dscale += b_b * tl.load(b2_ptr + o_d, mask=m_d, other=0.0).to(tl.float32)
        if dscale_ptr is not None:
            tl.store(dscale_ptr + o_d, b_dscale, mask=m_d)
