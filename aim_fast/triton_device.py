"""What both directions of the Triton backend need: the kernels, the facts of a device, and the plan of a launch.

Triton is imported when `kernels` is first called, not before.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aim_fast import tuning
from aim_fast.kernels import tiling

# Triton's interpreter takes CPU tensors; it is chosen once, when Triton is imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
# What a plan in the interpreter is made for. So few processors mean few and large tiles, which it runs fastest.
_STAND_IN = tiling.Gpu("Triton's interpreter", (9, 0), 8)
# What `torch.backends.cuda.matmul.fp32_precision` asks, a sixth of its time away; None in a torch without that name.
_FP32_PRECISION = getattr(torch._C, "_get_fp32_precision_getter", None)


class Kernels(NamedTuple):
    """The kernels, each called as kernel[grid](...), and Triton's names of the dtypes."""

    fwd: Any
    dx: Any
    dw: Any
    total: Any
    dtypes: dict[torch.dtype, Any]


@functools.cache
def kernels() -> Kernels:
    """The kernels; imports Triton."""
    import triton.language as tl

    from aim_fast.kernels.adapter_bwd import adapter_bwd_dx
    from aim_fast.kernels.adapter_bwd_dw import adapter_bwd_dw, adapter_bwd_sum
    from aim_fast.kernels.adapter_fwd import adapter_fwd

    dtypes = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    return Kernels(adapter_fwd, adapter_bwd_dx, adapter_bwd_dw, adapter_bwd_sum, dtypes)


@functools.cache
def gpu(index: int) -> tiling.Gpu:
    """The facts of a CUDA device; those of the stand-in for the interpreter's CPU tensors, whose index is -1."""
    if index < 0:
        return _STAND_IN
    properties = torch.cuda.get_device_properties(index)
    return tiling.Gpu(properties.name, (properties.major, properties.minor), properties.multi_processor_count)


def allow_tf32() -> bool:
    """Whether fp32 products may take tf32: `torch.backends.cuda.matmul.allow_tf32`, or its new name if it has one."""
    # The old name raises once the new one was used.
    return _FP32_PRECISION("cuda", "matmul") == "tf32" if _FP32_PRECISION else torch.backends.cuda.matmul.allow_tf32


def load_class(dtype: torch.dtype, *tensors: Tensor | None) -> str:
    """The column of the tiling table for products in `dtype` of these tensors."""
    if dtype.itemsize == 4:
        return "tf32" if allow_tf32() else "ieee"
    # What is converted on its way to a product needs more room: on sm_100 it goes through tensor memory.
    for t in tensors:  # a generator costs more, and this runs several times a call
        if t is not None and t.dtype != dtype:
            return "amp"
    return "half"


@functools.lru_cache(maxsize=1024)
def has_tiles(index: int, load: str, H: int) -> bool:
    """Whether the tiling table has a tile for every kernel on device `index`."""
    return all(tiling.tiles(gpu(index), kernel, load, H) for kernel in tiling.KERNELS)


@functools.lru_cache(maxsize=4096)
def plan(index: int, kernel: str, load: str, M: int, D: int, H: int, sides: int = 1, dims: int = 1) -> tiling.Plan:
    """How a kernel runs on device `index`, which has tiles for it. `aim_fast.tune` clears this cache."""
    return tuning.plan(gpu(index), kernel, load, M, D, H, sides, dims)


def constants(how: tiling.Plan, D: int, H: int, dtype: torch.dtype, load: str) -> dict[str, Any]:
    """The arguments of a plan that fwd, dx and dw have in common."""
    tile = how.tile
    return {
        "D": D,
        "H": H,
        **{f"P{i}": part for i, part in enumerate(how.parts)},
        "BLOCK_M": tile.block_m,
        "BLOCK_D": tile.block_d,
        "STAGES": tile.stages,
        "COMPUTE": kernels().dtypes[dtype],
        "PRECISION": "tf32" if load == "tf32" else "ieee",
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def contiguous(*tensors: Tensor | None) -> Sequence[Any]:
    """The tensors, copied where they are not contiguous."""
    return [t if t is None or t.is_contiguous() else t.contiguous() for t in tensors]


def on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with the device of its first argument, a tensor, as the current one: Triton launches there."""

    @functools.wraps(function)
    def run(first: Tensor, *arguments: Any) -> Any:
        if first.is_cuda and first.get_device() != torch.cuda.current_device():
            with torch.cuda.device(first.get_device()):
                return function(first, *arguments)
        return function(first, *arguments)

    return run
