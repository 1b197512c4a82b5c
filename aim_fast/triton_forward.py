"""Launches the forward kernel: `aim_fast::adapter_forward` on an NVIDIA GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from aim_fast import ops, reference
from aim_fast.triton_device import contiguous, has_tiles, load_class, on_device, plan
from aim_fast.triton_launch import by_rows
from aim_fast.triton_rows import rows_of, unit_stride


def launch(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    scale: Tensor | None,
    row_scale: Tensor | None,
    residual: Tensor | None,
    activation: str,
    skip: bool,
    alpha: float,
    dtype: torch.dtype,
    y: Tensor | None,
    z: Tensor | None,
) -> None:
    """Fill y and z, each None where it is not wanted.

    As `forward`, but the weights contiguous, unit strides on the last dimensions, and row_scale of x's leading shape.
    """
    H, D = w1.shape
    M = x.numel() // D
    load = load_class(dtype, x, w1, w2)
    leading, target = x.shape[:-1], y
    rows = rows_of(leading, x, row_scale, residual, y)
    if rows is None:
        # More than three dimensions that do not merge: the rows are copied.
        x, residual, row_scale = contiguous(x, residual, row_scale)
        y = None if y is None else torch.empty(y.shape, dtype=y.dtype, device=y.device)
        rows = rows_of(leading, x, row_scale, residual, y)
        assert rows is not None
    index, wide_scale = x.get_device(), scale is not None and scale.numel() != 1
    how = plan(index, "fwd", load, M, D, H, 1, rows.dims)
    kernel = by_rows("fwd", index, how, load, M, D, H, rows, activation, skip, wide_scale, dtype)
    kernel((x, w1, b1, w2, b2, scale, row_scale, residual, y, z), alpha)
    if target is not None and y is not None and target is not y:
        target.copy_(y)


@on_device
def forward(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    scale: Tensor | None,
    row_scale: Tensor | None,
    residual: Tensor | None,
    activation: str,
    skip: bool,
    alpha: float,
    dtype: torch.dtype,
    keep_z: bool,
    keep_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, z and x as ops.py says. What no tile serves runs the composition."""
    call = (activation, skip, alpha, dtype)
    # Their layout decides y's, before anything is copied.
    y = ops.empty_like(x if residual is None else residual, reference.output_dtype(dtype, x, skip, residual))
    z = x.new_empty((x.numel() // w1.shape[1] if keep_z else 0, w1.shape[0]), dtype=dtype)
    if x.numel() == 0:
        return y, z, ops.kept_x(x, dtype, keep_x)
    if not has_tiles(x.get_device(), load_class(dtype, x, w1, w2), w1.shape[0]):
        return ops._forward_reference(x, w1, b1, w2, b2, scale, row_scale, residual, *call, keep_z, keep_x)
    rows, kept = unit_stride(x), z if keep_z else None
    added = None if residual is None else unit_stride(residual)
    factors = None if row_scale is None else row_scale.expand(x.shape[:-1])
    w1, b1, w2, b2, scale = contiguous(w1, b1, w2, b2, scale)
    launch(rows, w1, b1, w2, b2, scale, factors, added, *call, y, kept)
    return y, z, ops.kept_x(x, dtype, keep_x)
