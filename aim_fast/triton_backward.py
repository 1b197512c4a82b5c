"""Launches the backward kernels: `aim_fast::adapter_backward` on an NVIDIA GPU. Nothing runs that nobody asked for."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from aim_fast import ops
from aim_fast.kernels.tiling import Plan, slice_rows
from aim_fast.triton_device import constants, contiguous, has_tiles, kernels, load_class, on_device, plan
from aim_fast.triton_forward import launch as launch_forward
from aim_fast.triton_launch import Launch, by_rows
from aim_fast.triton_rows import Rows, rows_of, unit_stride

# Blocks of adapter_bwd_sum: 8 columns of D a program give a GPU enough programs.
_SUM = {"BLOCK_D": 8, "BLOCK_H": 64, "BLOCK_R": 128, "BLOCK_S": 8, "num_warps": 4}


@on_device
def backward(
    dy: Tensor,
    x: Tensor | None,
    z: Tensor | None,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    scale: Tensor | None,
    row_scale: Tensor | None,
    activation: str,
    skip: bool,
    alpha: float,
    dtype: torch.dtype,
    x_dtype: torch.dtype,
    needs: int,
) -> Sequence[Tensor]:
    """dx, dw1, db1, dw2, db2, dscale where their bit is set in `needs`, else [0]; arguments as in ops.py.

    Workspace: z [M, H] when it was not kept, dz and h [M, H], and partial sums in fp32: of db1 and db2 for each tile of
    rows, of dw1 and dw2 for each slice of rows.
    """
    wanted = [bool(needs >> i & 1) for i in range(len(ops.NEEDS))]
    parameters = (w1, b1, w2, b2, scale)
    dx = ops.empty_like(dy, x_dtype) if wanted[0] else None
    of_parameters = [
        torch.empty_like(p, memory_format=torch.contiguous_format) if want and p is not None else None
        for p, want in zip(parameters, wanted[1:], strict=True)
    ]
    asked = [dx, *of_parameters]
    results = [ops._nothing(dy) if t is None else t for t in asked]
    if dy.numel() == 0:
        return [t.zero_() for t in results]
    through_z = any(t is not None for t in (*asked[:4], asked[5]))
    if through_z and x is None and (z is None or asked[1] is not None):
        missing = "x was not kept; dw1 needs it" if z is not None else "neither x nor z was kept; one of them is needed"
        raise ValueError(f"adapter: {missing} for the backward")

    H, D = w1.shape
    if not has_tiles(dy.get_device(), load_class(dtype, dy, x, w1, w2), H):
        call = (activation, skip, alpha, dtype, x_dtype, needs)
        return ops._backward_reference(dy, x, z, w1, b1, w2, b2, scale, row_scale, *call)
    dy, x = unit_stride(dy), None if x is None else unit_stride(x)
    w1, b1, w2, b2, scale = contiguous(w1, b1, w2, b2, scale)
    if z is None and through_z and x is not None:
        z = dy.new_empty((dy.numel() // D, H), dtype=dtype)
        launch_forward(x, w1, b1, w2, b2, None, None, None, activation, False, 1.0, dtype, None, z)
    _launch(dy, x, z, w1, b1, w2, b2, scale, row_scale, activation, skip, alpha, dtype, asked)
    return results


@functools.lru_cache(maxsize=1024)
def _dw(index: int, how: Plan, load: str, M: int, D: int, H: int, rows: Rows, sides: int, dtype: torch.dtype) -> Launch:
    """K2, to be called with its tensors from x to ws_dw2."""
    per_slice = slice_rows(how, load, M)
    numbers = (M, per_slice, rows.n1, rows.n2, *itertools.chain(*rows.strides))
    grid = (-(-D // how.tile.block_d), sides, -(-M // per_slice))
    return Launch(kernels().dw, index, grid, numbers, {"DIMS": rows.dims, **constants(how, D, H, dtype, load)})


@functools.lru_cache(maxsize=1024)
def _total(index: int, slices: int, tiles: int, D: int, H: int, wide_scale: bool, dtype: torch.dtype) -> Launch:
    """The sum, to be called with its tensors from ws_dw1 to dscale, and alpha."""
    named = {"D": D, "H": H, "WIDE_SCALE": wide_scale, "COMPUTE": kernels().dtypes[dtype]}
    grid = (-(-max(D, H) // _SUM["BLOCK_D"]), 2)
    return Launch(kernels().total, index, grid, (slices, tiles), {**named, **_SUM})


def _launch(
    dy: Tensor,
    x: Tensor | None,
    z: Tensor | None,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    scale: Tensor | None,
    row_scale: Tensor | None,
    activation: str,
    skip: bool,
    alpha: float,
    dtype: torch.dtype,
    asked: Sequence[Tensor | None],
) -> None:
    """Fill the results that are not None: K1, K2 and the sum of the partial results, as far as they need them."""
    dx, dw1, db1, dw2, db2, dscale = asked
    H, D = w1.shape
    M = dy.numel() // D
    load = load_class(dtype, dy, w1, w2)
    leading = dy.shape[:-1]
    x = x if dw1 is not None else None
    factors = None if row_scale is None else row_scale.expand(leading)
    out = dx
    # More than three dimensions that do not merge: the rows are copied.
    rows = rows_of(leading, dy, factors, out)
    if rows is None:
        dy, factors = contiguous(dy, factors)
        out = None if dx is None else torch.empty(dx.shape, dtype=dx.dtype, device=dx.device)
        rows = rows_of(leading, dy, factors, out)
        assert rows is not None
    dw_dy = dy
    dw_rows = rows_of(leading, x, dw_dy)
    if dw_rows is None:
        x, dw_dy = contiguous(x, dw_dy)
        dw_rows = rows_of(leading, x, dw_dy)
        assert dw_rows is not None

    def workspace(want: bool, *shape: int) -> Tensor | None:
        return torch.empty(shape, dtype=torch.float32, device=dy.device) if want else None

    index = dy.get_device()
    dx_plan = plan(index, "dx", load, M, D, H, 1, rows.dims)
    wide_scale = scale is not None and scale.numel() != 1
    tiles = -(-M // dx_plan.tile.block_m)
    # Both have a z: without one nothing was asked for that needs them.
    dz = torch.empty_like(z) if z is not None and dw1 is not None else None
    h = torch.empty_like(z) if z is not None and (dw2 is not None or dscale is not None) else None
    ws_db1 = workspace(db1 is not None, tiles, H)
    ws_db2 = workspace(db2 is not None or (dscale is not None and b2 is not None), tiles, D)
    dx_kernel = by_rows("dx", index, dx_plan, load, M, D, H, rows, activation, skip, wide_scale, dtype)
    dx_kernel((dy, z, w1, w2, scale, factors, out, dz, h, ws_db1, ws_db2), alpha)
    if dx is not None and out is not None and out is not dx:
        dx.copy_(out)

    slices, ws_dw1, ws_dw2 = 0, None, None
    sides = (dz is not None) + (h is not None)
    if sides:
        load = load_class(dtype, x, dw_dy if h is not None else None)
        dw_plan = plan(index, "dw", load, M, D, H, sides)
        slices = -(-M // slice_rows(dw_plan, load, M))
        ws_dw1, ws_dw2 = workspace(dz is not None, slices, D, H), workspace(h is not None, slices, D, H)
        dw_kernel = _dw(index, dw_plan, load, M, D, H, dw_rows, sides, dtype)
        dw_kernel((x, dz, dw_dy if h is not None else None, h, ws_dw1, ws_dw2))
    if any(t is not None for t in asked[1:]):
        of_columns = workspace(dscale is not None, D)
        partial, parameters = (ws_dw1, ws_dw2, ws_db1, ws_db2), (w2, b2, scale)
        total = _total(index, slices, tiles, D, H, wide_scale, dtype)
        total((*partial, *parameters, dw1, db1, dw2, db2, of_columns), alpha)
        if dscale is not None and of_columns is not None:
            dscale.copy_((of_columns if wide_scale else of_columns.sum()).view(dscale.shape))
