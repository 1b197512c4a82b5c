"""Launches the Triton kernels: rows folded to three dimensions, workspace, grids. Registered for CUDA tensors by ops.py.

Triton is imported at the first launch, not before.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aim_fast import ops, reference, tuning
from aim_fast.kernels import tiling

_library = torch.library.Library("aim_fast", "IMPL")
# Triton's interpreter takes CPU tensors; it is chosen once, when Triton is imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
# What a plan in the interpreter is made for: any GPU would do.
_STAND_IN = tiling.Gpu("Triton's interpreter", (9, 0), 8)


class _Rows(NamedTuple):
    """Leading dimensions of several tensors, merged together: DIMS of them, and for each tensor three strides."""

    dims: int
    n1: int
    n2: int
    strides: tuple[tuple[int, int, int], ...]


@functools.lru_cache(maxsize=1024)
def fold(sizes: tuple[int, ...], *strides: tuple[int, ...]) -> _Rows | None:
    """The leading dimensions of tensors of these sizes and strides as at most three, adjacent ones merged where all
    tensors allow it; None where they are more."""
    merged: list[tuple[int, tuple[int, ...]]] = []
    for i in reversed(range(len(sizes))):
        size, step = sizes[i], tuple(s[i] for s in strides)
        if size == 1:
            continue
        if merged and all(a == b * merged[-1][0] for a, b in zip(step, merged[-1][1], strict=True)):
            merged[-1] = (size * merged[-1][0], merged[-1][1])
        else:
            merged.append((size, step))
    if len(merged) > 3:
        return None
    dims = max(len(merged), 1)
    # In the tile of a kernel offsets have 32 bits when there is one dimension; far rows take the 64-bit way of two.
    if dims == 1 and merged and max(merged[0][1]) >= 1 << 22:
        dims = 2
    merged += [(1, (0,) * len(strides))] * (3 - len(merged))
    triples = tuple((merged[2][1][i], merged[1][1][i], merged[0][1][i]) for i in range(len(strides)))
    return _Rows(dims, merged[1][0], merged[0][0], triples)


def _fold(leading: torch.Size, *tensors: Tensor | None) -> _Rows | None:
    return fold(tuple(leading), *((0,) * len(leading) if t is None else t.stride()[: len(leading)] for t in tensors))


def _unit_stride(t: Tensor) -> Tensor:
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


class _Kernels(NamedTuple):
    fwd: Any
    dx: Any
    dw: Any
    total: Any
    dtypes: dict[torch.dtype, Any]


@functools.cache
def _kernels() -> _Kernels:
    import triton.language as tl

    from aim_fast.kernels.adapter_bwd import adapter_bwd_dx
    from aim_fast.kernels.adapter_bwd_dw import adapter_bwd_dw, adapter_bwd_sum
    from aim_fast.kernels.adapter_fwd import adapter_fwd

    dtypes = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    return _Kernels(adapter_fwd, adapter_bwd_dx, adapter_bwd_dw, adapter_bwd_sum, dtypes)


@functools.cache
def gpu(index: int) -> tiling.Gpu:
    """The facts of a CUDA device; of the stand-in for the interpreter's CPU tensors, index -1."""
    if index < 0:
        return _STAND_IN
    properties = torch.cuda.get_device_properties(index)
    return tiling.Gpu(properties.name, (properties.major, properties.minor), properties.multi_processor_count)


def allow_tf32() -> bool:
    """Whether fp32 products may take tf32: `torch.backends.cuda.matmul.allow_tf32`, under its new name if it has one."""
    matmul = torch.backends.cuda.matmul
    # The old name raises once the new one was used.
    return matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32


def load_class(dtype: torch.dtype, *tensors: Tensor | None) -> str:
    """The column of the tiling table for products in `dtype` of these tensors."""
    if dtype.itemsize == 4:
        return "wide" if allow_tf32() else "ieee"
    return "wide" if any(t is not None and t.itemsize > 2 for t in tensors) else "half"


@functools.lru_cache(maxsize=4096)
def _plan(index: int, kernel: str, load: str, M: int, D: int, H: int, sides: int = 1) -> tiling.Plan | None:
    return tuning.plan(gpu(index), kernel, load, M, D, H, sides)


def _sizes(plan: tiling.Plan, H: int, D: int, dtype: torch.dtype, load: str) -> dict[str, Any]:
    tile = plan.tile
    p0, p1, p2, p3 = plan.parts
    return {
        "D": D,
        "H": H,
        "P0": p0,
        "P1": p1,
        "P2": p2,
        "P3": p3,
        "BLOCK_M": tile.block_m,
        "BLOCK_D": tile.block_d,
        "STAGES": tile.stages,
        "COMPUTE": _kernels().dtypes[dtype],
        "PRECISION": "tf32" if load == "wide" and dtype is torch.float32 else "ieee",
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with the device of its first tensor as the current one: Triton launches there."""

    @functools.wraps(function)
    def run(first: Tensor, *arguments: Any) -> Any:
        if first.is_cuda and first.get_device() != torch.cuda.current_device():
            with torch.cuda.device(first.get_device()):
                return function(first, *arguments)
        return function(first, *arguments)

    return run


def _launch_forward(
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
) -> bool:
    """Fill y and z, either None where it is not wanted. False, and nothing done, where no tile serves."""
    H, D = w1.shape
    M = x.numel() // D
    load = load_class(dtype, x, w1, w2)
    plan = _plan(x.get_device(), "fwd", load, M, D, H)
    if plan is None:
        return False
    leading = x.shape[:-1]
    rows = _fold(leading, x, row_scale, residual, y)
    target = y
    if rows is None:
        # More than three dimensions that do not merge: the rows are copied.
        x, residual = x.contiguous(), None if residual is None else residual.contiguous()
        row_scale = None if row_scale is None else row_scale.contiguous()
        y = None if y is None else torch.empty(y.shape, dtype=y.dtype, device=y.device)
        rows = _fold(leading, x, row_scale, residual, y)
        assert rows is not None
    tile = plan.tile
    _kernels().fwd[(-(-M // tile.block_m), plan.split)](
        x,
        w1,
        b1,
        w2,
        b2,
        scale,
        row_scale,
        residual,
        y,
        z,
        M,
        rows.n1,
        rows.n2,
        *rows.strides[0],
        *rows.strides[1],
        *rows.strides[2],
        *rows.strides[3],
        alpha,
        BLOCK_K=tile.block_k,
        SPLIT=plan.split,
        DIMS=rows.dims,
        ACT=activation,
        SKIP=skip,
        WIDE_SCALE=scale is not None and scale.numel() != 1,
        **_sizes(plan, H, D, dtype, load),
    )
    if target is not None and y is not None and target is not y:
        target.copy_(y)
    return True


@_on_device
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
) -> tuple[Tensor, Tensor]:
    """`aim_fast::adapter_forward`: y, and z [M, H] if kept. What no tile serves runs the composition."""
    call = (activation, skip, alpha, dtype)
    x, residual = _unit_stride(x), None if residual is None else _unit_stride(residual)
    w1, w2, b1, b2, scale = _contiguous(w1, w2, b1, b2, scale)
    row_scale = None if row_scale is None else row_scale.expand(x.shape[:-1])
    y = ops.empty_like(x if residual is None else residual, reference.output_dtype(dtype, x, skip, residual))
    z = x.new_empty((x.numel() // w1.shape[1] if keep_z else 0, w1.shape[0]), dtype=dtype)
    if x.numel() and not _launch_forward(
        x, w1, b1, w2, b2, scale, row_scale, residual, *call, y, z if keep_z else None
    ):
        return ops._forward_reference(x, w1, b1, w2, b2, scale, row_scale, residual, *call, keep_z)
    return y, z


def _contiguous(*tensors: Tensor | None) -> Sequence[Any]:
    return [t if t is None or t.is_contiguous() else t.contiguous() for t in tensors]


@_on_device
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`aim_fast::adapter_backward`: the gradients whose bit is set in `needs`, [0] for the others."""
    H, D = w1.shape
    M = dy.numel() // D
    device = dy.get_device()
    need = [bool(needs >> i & 1) for i in range(len(ops.NEEDS))]
    wanted = [want and p is not None for want, p in zip(need[1:], (w1, b1, w2, b2, scale), strict=True)]
    dw1, db1, dw2, db2, dscale = (
        torch.empty(p.shape, dtype=p.dtype, device=p.device) if want and p is not None else None
        for p, want in zip((w1, b1, w2, b2, scale), wanted, strict=True)
    )
    dx = ops.empty_like(dy, x_dtype) if need[0] else None
    results = (dx, dw1, db1, dw2, db2, dscale)
    nothing = ops._nothing(dy)
    if M == 0:
        return tuple(nothing if t is None else t.zero_() for t in results)  # type: ignore[return-value]

    load = load_class(dtype, dy, w1, w2)
    dw_load = load_class(dtype, dy, x)
    sides = (dw1 is not None) + (dw2 is not None or dscale is not None)
    plan = _plan(device, "dx", load, M, D, H)
    dw_plan = _plan(device, "dw", dw_load, M, D, H, sides) if sides else None
    if plan is None or (sides and dw_plan is None):
        return ops._backward_reference(
            dy, x, z, w1, b1, w2, b2, scale, row_scale, activation, skip, alpha, dtype, x_dtype, needs
        )
    through_z = need[0] or wanted[0] or wanted[1] or sides > 0
    dy, x = _unit_stride(dy), None if x is None else _unit_stride(x)
    w1, w2, b1, b2, scale = _contiguous(w1, w2, b1, b2, scale)
    if z is None and through_z:
        if x is None:
            raise ValueError("adapter: neither x nor z was kept; the backward needs one of them")
        z = dy.new_empty((M, H), dtype=dtype)
        _launch_forward(x, w1, b1, w2, b2, None, None, None, activation, False, 1.0, dtype, None, z)
    if dw1 is not None and x is None:
        raise ValueError("adapter: x was not kept; dw1 needs it")

    leading = dy.shape[:-1]
    row_scale = None if row_scale is None else row_scale.expand(leading)
    rows = _fold(leading, dy, row_scale, dx)
    dw_rows = _fold(leading, x if dw1 is not None else None, dy)
    out = dx
    if rows is None or dw_rows is None:
        # More than three dimensions that do not merge: the rows are copied.
        dy, x = dy.contiguous(), None if x is None else x.contiguous()
        row_scale = None if row_scale is None else row_scale.contiguous()
        out = None if dx is None else torch.empty(dx.shape, dtype=dx.dtype, device=dx.device)
        rows, dw_rows = _fold(leading, dy, row_scale, out), _fold(leading, x if dw1 is not None else None, dy)
        assert rows is not None
        assert dw_rows is not None

    tile = plan.tile
    tiles = -(-M // tile.block_m)

    def workspace(want: bool, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return torch.empty(shape, dtype=dtype, device=dy.device) if want else None

    dz = workspace(dw1 is not None, M, H, dtype=dtype)
    h = workspace(dw2 is not None or dscale is not None, M, H, dtype=dtype)
    ws_db1 = workspace(db1 is not None, tiles, H)
    ws_db2 = workspace(db2 is not None or (dscale is not None and b2 is not None), tiles, D)
    wide_scale = scale is not None and scale.numel() != 1
    _kernels().dx[(tiles, plan.split)](
        dy,
        z,
        w1,
        w2,
        scale,
        row_scale,
        out,
        dz,
        h,
        ws_db1,
        ws_db2,
        M,
        rows.n1,
        rows.n2,
        *rows.strides[0],
        *rows.strides[1],
        *rows.strides[2],
        alpha,
        BLOCK_K=tile.block_k,
        SPLIT=plan.split,
        DIMS=rows.dims,
        ACT=activation,
        SKIP=skip,
        WIDE_SCALE=wide_scale,
        **_sizes(plan, H, D, dtype, load),
    )
    if dx is not None and out is not None and out is not dx:
        dx.copy_(out)

    slices, ws_dw1, ws_dw2 = 1, None, None
    if dw_plan is not None:
        tile = dw_plan.tile
        slice_rows = -(-M // dw_plan.split // tile.block_m) * tile.block_m
        slices = -(-M // slice_rows)
        ws_dw1 = workspace(dw1 is not None, slices, D, H)
        ws_dw2 = workspace(h is not None, slices, D, H)
        _kernels().dw[(-(-D // tile.block_d), sides, slices)](
            x if dw1 is not None else None,
            dz,
            dy if h is not None else None,
            h,
            ws_dw1,
            ws_dw2,
            M,
            slice_rows,
            dw_rows.n1,
            dw_rows.n2,
            *dw_rows.strides[0],
            *dw_rows.strides[1],
            DIMS=dw_rows.dims,
            **_sizes(dw_plan, H, D, dtype, dw_load),
        )
    if any(wanted):
        ws_dscale = workspace(dscale is not None, D)
        _kernels().total[(-(-max(D, H) // _SUM["BLOCK_D"]), 2)](
            ws_dw1,
            ws_dw2,
            ws_db1,
            ws_db2,
            w2,
            b2,
            scale,
            dw1,
            db1,
            dw2,
            db2,
            ws_dscale,
            slices,
            tiles,
            alpha,
            D=D,
            H=H,
            WIDE_SCALE=wide_scale,
            COMPUTE=_kernels().dtypes[dtype],
            num_warps=4,
            **_SUM,
        )
        if dscale is not None and ws_dscale is not None:
            total = ws_dscale if wide_scale else ws_dscale.sum()
            dscale.copy_(total.view(dscale.shape))
    return tuple(nothing if t is None else t for t in results)  # type: ignore[return-value]


# Blocks of adapter_bwd_sum: 8 columns of D a program give a GPU enough programs.
_SUM = {"BLOCK_D": 8, "BLOCK_H": 64, "BLOCK_R": 128, "BLOCK_S": 8}


def register() -> None:
    """Make these the kernels of CUDA tensors; with Triton's interpreter, in their place, of CPU tensors."""
    for name, function in (("adapter_forward", forward), ("adapter_backward", backward)):
        _library.impl(name, function, "CPU" if INTERPRETED else "CUDA")


def takes(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, dtype: torch.dtype) -> bool:
    """Whether the tiling table has a tile for all kernels of a call."""
    load = load_class(dtype, x, w1, w2)
    return all(tiling.tiles(gpu(x.get_device()), kernel, load, w1.shape[0]) for kernel in tiling.KERNELS)


def advice(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, dtype: torch.dtype) -> tuple[bool, str]:
    return True, "stub"
