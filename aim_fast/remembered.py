"""What was chosen before: a call on a GPU like an earlier one is looked up, not weighed again.

Measured: H100 machine: to weigh a call between backends takes 40 to 70 us, as long as eager takes for one row.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from aim_fast import tuning
from aim_fast.checks import PLAIN
from aim_fast.reference import transformed
from aim_fast.triton_device import allow_tf32

if TYPE_CHECKING:
    from aim_fast.dispatch import Call

MOST = 4096  # choices; a loop over ever new sizes finds none of them again, so then all are dropped

# Backends by `_key_of`. To read, to write and to clear are each one step of a dict, whichever thread takes it.
_chosen: dict[tuple[Any, ...], str] = {}


def in_onnx_export() -> bool:
    """Whether torch.onnx is exporting; it is not imported to find out."""
    return "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export()


def choice(call: Call, forced: str, decide: Callable[[Call, str], str]) -> str:
    """What `decide` says for a call, asked once for all calls between which it cannot tell.

    forced: the backend asked for by name, or auto. What `decide` raises is not kept.
    """
    key = _key_of(call, forced)
    if key is None:
        return decide(call, forced)
    found = _chosen.get(key)
    if found is None:
        found = decide(call, forced)
        if len(_chosen) >= MOST:
            _chosen.clear()
        _chosen[key] = found
    return found


def _key_of(call: Call, forced: str) -> tuple[Any, ...] | None:
    """All that a choice depends on; None where it is made anew, since something traces, transforms or exports."""
    tensors: Sequence[Any] = call.tensors
    x, w1, b1, w2, b2, scale, row_scale, residual = tensors
    if torch.compiler.is_compiling() or type(x) not in PLAIN or type(w1) not in PLAIN:
        return None
    if transformed() or in_onnx_export():
        return None
    return (
        tuning.generation,
        forced,
        torch.is_grad_enabled() if call.train is None else call.train,
        call.dtype,
        call.dtype.itemsize == 4 and allow_tf32(),
        call.skip,
        x.get_device(),
        x.requires_grad,
        x.numel(),
        w1.shape,
        x.dtype,
        w1.dtype,
        w2.dtype,
        None if b1 is None else b1.dtype,
        None if b2 is None else b2.dtype,
        None if scale is None else scale.dtype,
        None if row_scale is None else row_scale.dtype,
        None if residual is None else residual.dtype,
    )
