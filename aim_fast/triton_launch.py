"""The Triton backend as the dispatch table sees it: registered, what it takes, and whether that is worth it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from aim_fast import reference, tuning
from aim_fast.kernels import estimate
from aim_fast.triton_backward import backward
from aim_fast.triton_device import INTERPRETED, gpu, has_tiles, load_class
from aim_fast.triton_forward import forward

_library = torch.library.Library("aim_fast", "IMPL")


def register() -> None:
    """Make these the kernels of CUDA tensors; with Triton's interpreter, of CPU tensors instead."""
    for name, function in (("adapter_forward", forward), ("adapter_backward", backward)):
        _library.impl(name, function, "CPU" if INTERPRETED else "CUDA")


def takes(tensors: Sequence[Any], dtype: torch.dtype) -> bool:
    """Whether the tiling table has a tile for every kernel of a call; tensors and dtype as in `dispatch.Call`."""
    x, w1, _, w2 = tensors[:4]
    return has_tiles(x.get_device(), load_class(dtype, x, w1, w2), w1.shape[0])


def advice(tensors: Sequence[Any], dtype: torch.dtype, skip: bool) -> tuple[bool, str]:
    """Whether the kernels are worth it for a call, and the words for it. A train step counts where grad is enabled."""
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
    return tuning.advice(gpu(x.get_device()), case, torch.is_grad_enabled())
