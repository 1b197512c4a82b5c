"""Argument errors: subject, what it got, what is needed, the remedy. Raised before anything is launched or written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn

from aim_fast.reference import ACTIVATIONS

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_STRIDED = torch.strided
PLAIN = (nn.Parameter, Tensor)  # known without asking for their base classes; another class may see its operators
_NAMES = ("x", "w1", "w2", "b1", "b2", "row_scale", "residual", "scale")  # the first three are never None


def _refuse(value: object, values: Sequence[object], device: torch.device) -> NoReturn:
    """Raise for one of the values, which are in the order of `_NAMES`."""
    name = next(name for name, other in zip(_NAMES, values, strict=True) if other is value)
    if not isinstance(value, Tensor):
        raise TypeError(f"adapter: {name} is a {type(value).__name__}; expected a torch.Tensor")
    if value.layout is not torch.strided:
        raise TypeError(f"adapter: {name} has layout {value.layout}; expected a dense tensor; use {name}.to_dense()")
    if value.dtype not in DTYPES:
        raise TypeError(
            f"adapter: {name} is {value.dtype}; expected float32, bfloat16, float16 or float64; "
            f"convert it with {name}.to(...)"
        )
    raise ValueError(
        f"adapter: {name} is on {value.device} but x is on {device}; expected one device; move it with .to(x.device)"
    )


def _refuse_shape(name: str, value: Tensor, expected: Sequence[int], symbols: str, remedy: str) -> NoReturn:
    raise ValueError(
        f"adapter: {name} is {list(value.shape)}; expected {name} of shape {symbols} = {list(expected)}; {remedy}"
    )


def check_arguments(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    activation: str,
    scale: float | Tensor,
    row_scale: Tensor | None,
    residual: Tensor | None,
) -> None:
    """Raise TypeError or ValueError unless the arguments make one call of the operator (shapes as in `adapter`)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"adapter: x is a {type(x).__name__}; expected a torch.Tensor")
    scale_tensor = None
    if type(scale) is not float:  # isinstance is slow to say no
        scale_tensor = scale if isinstance(scale, Tensor) else None
        if scale_tensor is None and (isinstance(scale, bool) or not isinstance(scale, (int, float))):
            raise TypeError(
                f"adapter: scale is a {type(scale).__name__}; expected a float, or a tensor of shape [1] or [D]"
            )
    # By position and without a dict: this runs at every call, and a call on one row takes a few microseconds.
    device, values = x.device, (x, w1, w2, b1, b2, row_scale, residual, scale_tensor)
    for value in values:
        if value is not None and (
            (type(value) not in PLAIN and not isinstance(value, Tensor))
            or value.layout is not _STRIDED
            or value.dtype not in DTYPES
            or value.device != device
        ):
            _refuse(value, values, device)
    if w1 is None or w2 is None:
        _refuse(None, values, device)

    if activation not in ACTIVATIONS:
        raise ValueError(f"adapter: activation is {activation!r}; expected one of {', '.join(ACTIVATIONS)}")
    shape, down = x.shape, w1.shape
    if len(shape) < 1:
        raise ValueError("adapter: x has no dimensions; expected x of shape [..., D]; add one with x.unsqueeze(0)")
    width = shape[-1]
    if width < 1:
        raise ValueError(f"adapter: x is {list(shape)}; expected a last dimension D >= 1")
    if len(down) != 2 or down[0] < 1 or down[1] != width:
        raise ValueError(
            f"adapter: w1 is {list(down)} but x has D = {width}; expected w1 of shape [H, {width}] with H >= 1; "
            "w1 is the weight of nn.Linear(D, H)"
        )
    hidden = down[0]
    if w2.shape != (width, hidden):
        _refuse_shape("w2", w2, (width, hidden), "[D, H]", "w2 is the weight of nn.Linear(H, D)")
    if b1 is not None and b1.shape != (hidden,):
        _refuse_shape("b1", b1, (hidden,), "[H]", "pass None for no bias")
    if b2 is not None and b2.shape != (width,):
        _refuse_shape("b2", b2, (width,), "[D]", "pass None for no bias")
    if scale_tensor is not None and (
        scale_tensor.dim() > 1 or (scale_tensor.numel() != 1 and scale_tensor.numel() != width)
    ):
        raise ValueError(f"adapter: scale is {list(scale_tensor.shape)}; expected shape [1] or [D] = [{width}]")
    if residual is not None and residual.shape != shape:
        _refuse_shape("residual", residual, shape, "x", "expand it to x's shape first")
    if row_scale is not None:
        _check_row_scale(row_scale, shape[:-1])


def _check_row_scale(row_scale: Tensor, leading: Sequence[int]) -> None:
    needed = f"a shape that broadcasts to x's leading dimensions {list(leading)}"
    if row_scale.requires_grad:
        raise ValueError("adapter: row_scale requires grad; expected a constant; use row_scale.detach()")
    sizes = tuple(row_scale.shape)
    if len(sizes) > len(leading) or any(
        got not in (1, want) for got, want in zip(reversed(sizes), reversed(tuple(leading)), strict=False)
    ):
        raise ValueError(
            f"adapter: row_scale is {list(sizes)}; expected {needed}; drop its last dimension if that is 1"
        )
