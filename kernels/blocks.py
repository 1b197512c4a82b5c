"""How the kernels address memory: rows of up to three strided dimensions, and H covered by parts.

Rows      m = (i0 * n1 + i1) * n2 + i2 lies at i0 * stride_0 + i1 * stride_1 + i2 * stride_2. With DIMS = 1 only
          stride_2 counts: then the 64-bit part of every offset is one scalar, and 32 bits are enough in the tile.
Parts     H is covered by up to four parts P0 + P1 + P2 + P3, powers of two or 0 (192 = 128 + 64), with one accumulator
          each, so that a width that is no power of two is not padded. A ragged H pads and masks its last part.
          A part of width 0 costs nothing: its accumulator is a number that nobody reads.
"""

import triton
import triton.language as tl


@triton.jit
def first_row(ptr, i_m, stride_2, DIMS: tl.constexpr):
    """The pointer that `row_offsets` counts from; i_m is the tile's first row, int64."""
    if DIMS == 1:
        return ptr + i_m * stride_2
    else:
        return ptr


@triton.jit
def row_offsets(i_m, o_m, n1, n2, stride_0, stride_1, stride_2, DIMS: tl.constexpr):
    """[BLOCK_M] offsets of the rows i_m + o_m from `first_row`."""
    if DIMS == 1:
        return o_m * stride_2
    else:
        o_row = i_m + o_m
        o_0 = o_row // n2
        o_2 = (o_row - o_0 * n2) * stride_2
        if DIMS == 2:
            return o_0 * stride_1 + o_2
        else:
            i_0 = o_0 // n1
            return i_0 * stride_0 + (o_0 - i_0 * n1) * stride_1 + o_2


@triton.jit
def load(ptr, o, m_row, m_col, ROWS: tl.constexpr, COLS: tl.constexpr):
    """A tile, 0 outside; ROWS and COLS say which mask can be false: one that never is costs a register per pointer."""
    if ROWS and COLS:
        return tl.load(ptr + o, mask=m_row & m_col, other=0.0)
    elif ROWS:
        return tl.load(ptr + o, mask=m_row, other=0.0)
    elif COLS:
        return tl.load(ptr + o, mask=m_col, other=0.0)
    else:
        return tl.load(ptr + o)


@triton.jit
def zeros(ROWS: tl.constexpr, COLS: tl.constexpr):
    """An fp32 accumulator; one number for a part of width 0."""
    if COLS == 0:
        return tl.zeros((1,), tl.float32)
    else:
        return tl.zeros((ROWS, COLS), tl.float32)


@triton.jit
def add_down(
    b_sum,
    b_a,
    w_ptr,
    o_row,
    m_row,
    stride_row,
    stride_col,
    START: tl.constexpr,
    WIDTH: tl.constexpr,
    H: tl.constexpr,
    RAGGED_ROW: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """sum += a [ROWS, K] @ w [K, WIDTH]: the part of w's columns that begins at START, its rows o_row [K]."""
    if WIDTH == 0:
        return b_sum
    else:
        o_h = START + tl.arange(0, WIDTH)[None, :]
        RAGGED_H: tl.constexpr = START + WIDTH > H
        b_w = load(w_ptr, o_row[:, None] * stride_row + o_h * stride_col, m_row[:, None], o_h < H, RAGGED_ROW, RAGGED_H)
        return tl.dot(b_a, b_w.to(COMPUTE), b_sum, input_precision=PRECISION)


@triton.jit
def add_up(
    b_sum,
    b_h,
    w_ptr,
    o_d,
    m_d,
    stride_h,
    stride_d,
    START: tl.constexpr,
    WIDTH: tl.constexpr,
    H: tl.constexpr,
    RAGGED_D: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """sum [ROWS, BLOCK_D] += h [ROWS, WIDTH] @ w [WIDTH, BLOCK_D]: w's rows that begin at START, its columns o_d."""
    if WIDTH == 0:
        return b_sum
    else:
        o_h = START + tl.arange(0, WIDTH)[:, None]
        RAGGED_H: tl.constexpr = START + WIDTH > H
        b_w = load(w_ptr, o_h * stride_h + o_d[None, :] * stride_d, o_h < H, m_d[None, :], RAGGED_H, RAGGED_D)
        return tl.dot(b_h, b_w.to(COMPUTE), b_sum, input_precision=PRECISION)
