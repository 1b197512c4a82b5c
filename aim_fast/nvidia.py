"""The backends for NVIDIA GPUs as the dispatch table sees them: what they take, and whether that is worth it.

"cuda" are the kernels of the compiled library, "triton" those of aim_fast.kernels.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import torch

from aim_fast import reference, tuning
from aim_fast.kernels import estimate
from aim_fast.triton_device import gpu, has_tiles, load_class


@functools.cache
def cuda_archs() -> str:
    """What the loaded library has CUDA kernels for: "80,90a", "emulated" where they run CPU tensors, or nothing."""
    ops = torch.ops.aim_fast
    return ops.cuda_archs() if hasattr(ops, "cuda_archs") else ""


def is_emulated() -> bool:
    """Whether the CUDA kernels of the loaded library run on the CPU."""
    return cuda_archs() == "emulated"


def lowest_arch() -> int:
    """80 where the CUDA kernels are for compute capability 8.0 and, translated, for every later one."""
    found = re.match(r"\d+", cuda_archs())
    return int(found[0]) if found else 0


@functools.lru_cache(maxsize=1024)
def cuda_plans(index: int, D: int, H: int, dtype: torch.dtype, backward: bool) -> tuple[str, ...]:
    """The plans that the CUDA kernels have for products in `dtype` on device `index`, the best family's first."""
    return tuple(filter(None, torch.ops.aim_fast.cuda_plans(index, D, H, dtype, backward).split(",")))


@functools.lru_cache(maxsize=4096)
def cuda_plan(index: int, load: str, dtype: torch.dtype, M: int, D: int, H: int, backward: bool) -> str:
    """The plan or family of the CUDA kernels measured to be fastest, "" for the rule's; `aim_fast.tune` clears this."""
    found = tuning.cuda_plan(gpu(index), "backward" if backward else "forward", load, M, D, H)
    plans = cuda_plans(index, D, H, dtype, backward)
    return found if any(found in (plan, plan.split("/")[0]) for plan in plans) else ""


def cuda_takes(tensors: Sequence[Any], dtype: torch.dtype) -> bool:
    """Whether the CUDA kernels have plans for a call, both directions; tensors and dtype as in `dispatch.Call`."""
    x, (H, D) = tensors[0], tensors[1].shape
    return x.numel() // D < 2**31 and all(cuda_plans(x.get_device(), D, H, dtype, back) for back in (False, True))


def triton_takes(tensors: Sequence[Any], dtype: torch.dtype) -> bool:
    """Whether the tiling table has a tile for every kernel of a call; tensors and dtype as in `dispatch.Call`."""
    x, w1, _, w2 = tensors[:4]
    return has_tiles(x.get_device(), load_class(dtype, x, w1, w2), w1.shape[0])


def advice(backend: str, tensors: Sequence[Any], dtype: torch.dtype, skip: bool, train: bool) -> tuple[bool, str]:
    """Whether a backend is worth it for a call or, with train, for a train step of it; and the words for that."""
    x, w1, _, w2, _, scale, row_scale, residual = tensors
    H, D = w1.shape
    y = reference.output_dtype(dtype, x, skip, residual)
    case = estimate.Case(
        x.numel() // D,
        D,
        H,
        load_class(dtype, x, w1, w2),
        x.itemsize,
        w1.itemsize,
        dtype.itemsize,
        y.itemsize,
        skip,
        scale is not None or row_scale is not None,
        residual is not None,
        x.requires_grad,
    )
    return tuning.advice(gpu(x.get_device()), case, train, backend)
