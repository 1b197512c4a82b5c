"""The operator in plain PyTorch, any dtype and device: the truth in float64, and the fallback of every backend.

y = scale * row_scale * f(x) [+ x] [+ residual],  f(x) = act(x @ w1.T + b1) @ w2.T + b2

Source: Adapter of AIM, "Adapting Image Models for Efficient Video Action Recognition" (Yang et al., ICLR 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _quick_gelu(z: Tensor) -> Tensor:
    return z * torch.sigmoid(1.702 * z)


def _gated_gradient(dh: Tensor, z: Tensor, slope: float) -> Tensor:
    """dh * act'(z) for act(z) = z * sigmoid(slope * z); silu_backward of PyTorch cannot be differentiated again."""
    wide = z if z.dtype is torch.float64 else z.float()
    s = torch.sigmoid(slope * wide)
    return (dh * (s + slope * wide * s * (1 - s))).to(z.dtype)


@dataclass(frozen=True)
class _Activation:
    value: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor]  # (dh, z) -> dh * act'(z), differentiable


_aten = torch.ops.aten
_FUNCTIONS = {
    "gelu": _Activation(F.gelu, _aten.gelu_backward),
    "gelu_tanh": _Activation(
        lambda z: F.gelu(z, approximate="tanh"), lambda dh, z: _aten.gelu_backward(dh, z, approximate="tanh")
    ),
    "quick_gelu": _Activation(_quick_gelu, lambda dh, z: _gated_gradient(dh, z, 1.702)),
    "relu": _Activation(F.relu, lambda dh, z: _aten.threshold_backward(dh, z, 0)),
    "silu": _Activation(F.silu, lambda dh, z: _gated_gradient(dh, z, 1.0)),
    "tanh": _Activation(torch.tanh, lambda dh, z: _aten.tanh_backward(dh, torch.tanh(z))),
    "leaky_relu": _Activation(F.leaky_relu, lambda dh, z: _aten.leaky_relu_backward(dh, z, 0.01, False)),
    "identity": _Activation(lambda z: z, lambda dh, z: dh),
}
# The order is the numbering of csrc/common/params.h.
ACTIVATIONS = tuple(_FUNCTIONS)


def activate(z: Tensor, activation: str) -> Tensor:
    """act(z), elementwise, in z's dtype."""
    return _FUNCTIONS[activation].value(z)


def promoted(*tensors: Tensor | None) -> torch.dtype:
    """The dtype that the given tensors promote to; None is skipped, but one has to be a tensor."""
    result = None
    for t in tensors:
        if t is not None and t.dtype is not result:
            result = t.dtype if result is None else torch.promote_types(result, t.dtype)
    if result is None:
        raise ValueError("promoted: got no tensor; expected at least one")
    return result


def output_dtype(dtype: torch.dtype, x: Tensor, skip: bool, residual: Tensor | None) -> torch.dtype:
    """The dtype of y: the compute dtype, promoted with x's under skip and with the residual's."""
    if skip and x.dtype is not dtype:
        dtype = torch.promote_types(dtype, x.dtype)
    if residual is not None and residual.dtype is not dtype:
        dtype = torch.promote_types(dtype, residual.dtype)
    return dtype


def device_type(t: Tensor) -> str:
    """t.device.type, which takes five times as long."""
    return "cpu" if t.is_cpu else "cuda" if t.is_cuda else t.device.type


def no_autocast(device: str) -> AbstractContextManager[object]:
    """Autocast off for a device type, if it is on; a device that has none, such as meta, is left alone."""
    on = has_autocast(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()


def has_autocast(device: str) -> bool:
    """Whether a device type has autocast. The usual ones are known: torch.compile in 2.10 cannot ask."""
    return device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)


def transformed() -> bool:
    """Whether a torch.func transform or a forward-mode level is active: those know PyTorch's own functions only."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


class _Linear(torch.autograd.Function):
    """F.linear whose backward ignores the autocast state of its time, for graphs that are traced."""

    @staticmethod
    def forward(ctx, x, w, b):
        ctx.save_for_backward(x if w.requires_grad else None, w if x.requires_grad else None)
        return F.linear(x, w, b)

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        need_x, need_w, need_b = ctx.needs_input_grad
        rows = dy.reshape(-1, dy.shape[-1])
        with no_autocast(dy.device.type):
            return (
                dy @ w if need_x else None,
                rows.t() @ x.reshape(-1, x.shape[-1]) if need_w else None,
                rows.sum(0) if need_b else None,
            )


def _all_to(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    """The tensors in a dtype; `Tensor.to` of the dtype that a tensor has takes as long as all else here."""
    return [t if t is None or t.dtype is dtype else t.to(dtype) for t in tensors]


def _leave_autocast(device: str, gradients: Sequence[Tensor | None]) -> None:
    """A prehook of an autograd node. Autograd gives every node the state anew, so that nothing has to be set back.

    Compiled autograd, which traces the hook, does not; there the products obey autocast, as PyTorch's own.
    """
    if not torch.compiler.is_compiling():
        torch.set_autocast_enabled(device, False)


def _hooked_linear(hook: Callable[..., None], x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """As `_Linear`, with PyTorch's own backward, for rows x [M, D]: y then hangs on the node that has the products.

    Measured: a Xeon with AMX, M = 1: two of these add 15 us to a train step of 124, two nodes of Python 33.
    """
    y = F.linear(x, w, b)
    if y.grad_fn is not None:
        y.grad_fn.register_prehook(hook)
    return y


_LINEAR = {device: partial(_hooked_linear, partial(_leave_autocast, device)) for device in ("cpu", "cuda")}


def composition(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    activation: str = "gelu",
    skip: bool = False,
    scale: float | Tensor = 1.0,
    row_scale: Tensor | None = None,
    residual: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The operator as separate, differentiable PyTorch operations; arguments as in `aim_fast.adapter`.

    `dtype` is the compute dtype (default: the promotion of x and the weights). Every step rounds to it.
    """
    dtype = dtype or promoted(x, w1, b1, w2, b2)
    device = device_type(x)
    linear, rows, flat = F.linear, x, False
    if torch.is_grad_enabled() and not transformed():
        if torch.compiler.is_compiling() or device not in _LINEAR:
            linear = _Linear.apply
        else:
            linear = _LINEAR[device]
            flat = x.dim() != 2
            rows = x.reshape(-1, x.shape[-1]) if flat else x
    with no_autocast(device):
        rows, w1, b1, w2, b2 = _all_to(dtype, rows, w1, b1, w2, b2)
        y = linear(activate(linear(rows, w1, b1), activation), w2, b2)
        if flat:
            y = y.view(x.shape)
        if type(scale) is not float and isinstance(scale, Tensor):  # isinstance is slow to say no
            y = y * scale.to(dtype)
        elif scale != 1.0:
            y = y * scale
        if row_scale is not None:
            y = y * row_scale.to(dtype).unsqueeze(-1)
        if skip:
            y = y + x
        if residual is not None:
            y = y + residual
        return y


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
) -> tuple[Tensor, Tensor]:
    """y (x's shape) and z [M, H] of the forward op, by the composition."""
    z = preactivation(x, w1, b1, dtype)
    y = F.linear(activate(z, activation), w2.to(dtype), None if b2 is None else b2.to(dtype)) * alpha
    y = y.view(x.shape)
    if scale is not None:
        y = y * scale.to(dtype)
    if row_scale is not None:
        y = y * row_scale.to(dtype).unsqueeze(-1)
    if skip:
        y = y + x
    if residual is not None:
        y = y + residual
    return y, z


def preactivation(x: Tensor, w1: Tensor, b1: Tensor | None, dtype: torch.dtype) -> Tensor:
    """z = x @ w1.T + b1, [M, H] in the compute dtype."""
    return F.linear(x.reshape(-1, x.shape[-1]).to(dtype), w1.to(dtype), None if b1 is None else b1.to(dtype))


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
    needs: Sequence[bool],
    dz: Tensor | None = None,
) -> list[Tensor | None]:
    """Gradients [dx, dw1, db1, dw2, db2, dscale] by explicit formulas, None where `needs` is false.

    z is [M, H] in the compute dtype, or None: then x gives it again. x may be None when z is given and dw1 not needed.
    Every step is differentiable, so that this serves double backward; dz is the gradient that then arrives at z.
    """
    need_x, need_w1, need_b1, need_w2, need_b2, need_scale = needs
    width = w1.shape[1]
    if z is None and x is not None:
        z = preactivation(x, w1, b1, dtype)
    elif z is None:
        if any((need_x, need_w1, need_b1, need_w2, need_scale)):
            raise ValueError("adapter: neither x nor z was kept; the backward needs one of them")
        z = dy.new_empty((0, w1.shape[0]), dtype=dtype)  # db2 alone does without
    rows = dy.reshape(-1, width).to(dtype) * alpha  # [M, D]
    if row_scale is not None:
        rows = rows * row_scale.to(dtype).expand(dy.shape[:-1]).reshape(-1, 1)
    branch = rows if scale is None else rows * scale.to(dtype)  # gradient of f
    grads: list[Tensor | None] = [None] * 6
    if need_w2 or need_scale:
        h = activate(z, activation)
        if need_w2:
            grads[3] = (branch.t() @ h).to(w2.dtype)
        if need_scale and scale is not None:
            f = F.linear(h, w2.to(dtype), None if b2 is None else b2.to(dtype))
            dscale = (rows * f).sum(0)
            if scale.numel() != width:
                dscale = dscale.sum()
            grads[5] = dscale.view(scale.shape).to(scale.dtype)
    if need_b2 and b2 is not None:
        grads[4] = branch.sum(0).to(b2.dtype)
    if need_x or need_w1 or need_b1:
        here = _FUNCTIONS[activation].gradient(branch @ w2.to(dtype), z)
        dz = here if dz is None else here + dz.to(dtype)
        if need_x:
            dx = (dz @ w1.to(dtype)).view(dy.shape)
            grads[0] = (dx + dy if skip else dx).to(x_dtype)
        if need_w1:
            if x is None:
                raise ValueError("adapter: x was not kept; dw1 needs it")
            grads[1] = (dz.t() @ x.reshape(-1, width).to(dtype)).to(w1.dtype)
        if need_b1 and b1 is not None:
            grads[2] = dz.sum(0).to(b1.dtype)
    return grads
