"""`adapter()`: the operator with its mixed-precision rule and its autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from aim_fast import dispatch, ops, reference
from aim_fast.checks import check_arguments

MAX_DIMS = 9  # of x, the last one included: as many as csrc/common/params.h holds


def adapter(
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
    recompute: bool = False,
) -> Tensor:
    """y = scale * row_scale * f(x) [+ x] [+ residual], with f(x) = act(x @ w1.T + b1) @ w2.T + b2.

    Args:
        x: [..., D], float32, bfloat16, float16 or float64, any strides (copied unless the last one is 1).
        w1, b1: [H, D] and [H] or None: weight and bias of nn.Linear(D, H).
        w2, b2: [D, H] and [D] or None: weight and bias of nn.Linear(H, D).
        activation: one of `aim_fast.ACTIVATIONS`; gelu is the exact one.
        skip: add x.
        scale: a number, or a tensor [1] or [D], which may be trained.
        row_scale: a constant that broadcasts over the leading dimensions of x: 0 or 1 / keep of a drop-path.
        residual: of x's shape, own strides and dtype; added, and y takes its layout.
        recompute: keep only x for the backward, and compute the pre-activation again there.

    Returns:
        y of x's shape, never x nor a view of it. The compute dtype is that of autocast when it is on for x's device,
        else the promotion of x and the weights; y has it, promoted with x's under skip and with the residual's. Sums
        are fp32 (float64 for float64); rounding happens twice: the hidden activation and y.

    Gradients flow to x, the weights and biases, residual and a tensor scale, each computed only when asked for. Kept
    for the backward are x and the pre-activation z [M, H] at most. Gradients of any order and torch.func work.

    Raises:
        TypeError, ValueError: an argument does not fit; the text says which, what is needed and the remedy.

    Source: Adapter of AIM (Yang et al., ICLR 2023).
    """
    check_arguments(x, w1, b1, w2, b2, activation, scale, row_scale, residual)
    dtype = compute_dtype(x, w1, b1, w2, b2)
    alpha, scale_tensor = (1.0, scale) if isinstance(scale, Tensor) else (float(scale), None)
    choice = dispatch.select(x.device.type, (x, w1, b1, w2, b2, scale_tensor, row_scale, residual), dtype, skip)
    if choice.backend == "eager":
        return reference.composition(
            x,
            w1,
            b1,
            w2,
            b2,
            activation=activation,
            skip=skip,
            scale=scale,
            row_scale=row_scale,
            residual=residual,
            dtype=dtype,
        )
    if x.dim() > MAX_DIMS:
        return _flattened(x, w1, b1, w2, b2, activation, skip, scale, row_scale, residual, recompute)
    if x.stride(-1) != 1 and x.shape[-1] != 1:
        x = x.contiguous()
    if residual is not None and residual.stride(-1) != 1 and residual.shape[-1] != 1:
        residual = residual.contiguous()
    call = (activation, skip, alpha, dtype)
    if not torch.is_grad_enabled():
        return ops.adapter_forward(x, w1, b1, w2, b2, scale_tensor, row_scale, residual, *call, False)[0]
    through_z = any(t is not None and t.requires_grad for t in (x, w1, b1, w2, scale_tensor))
    keep_z = through_z and not recompute
    keep_x = w1.requires_grad or (through_z and recompute)
    # x as it is multiplied, and as eager keeps it, where that is narrower.
    narrow = x.to(dtype) if keep_x and dtype.itemsize < x.dtype.itemsize else None
    return _Adapter.apply(x, w1, b1, w2, b2, scale_tensor, row_scale, residual, narrow, *call, keep_x, keep_z)[0]


def _flattened(x, w1, b1, w2, b2, activation, skip, scale, row_scale, residual, recompute):
    """`adapter` over rows [M, D], copied where x or the residual have more dimensions than a kernel walks."""
    leading = x.shape[:-1]
    y = adapter(
        x.reshape(-1, x.shape[-1]),
        w1,
        b1,
        w2,
        b2,
        activation=activation,
        skip=skip,
        scale=scale,
        row_scale=None if row_scale is None else row_scale.expand(leading).reshape(-1),
        residual=None if residual is None else residual.reshape(-1, x.shape[-1]),
        recompute=recompute,
    )
    return y.view(x.shape)


def explain(
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
    recompute: bool = False,
) -> dispatch.Explanation:
    """Which backend `adapter` would run these arguments on, and why not the others. Raises as `adapter` does."""
    check_arguments(x, w1, b1, w2, b2, activation, scale, row_scale, residual)
    scale_tensor = scale if isinstance(scale, Tensor) else None
    dtype = compute_dtype(x, w1, b1, w2, b2)
    return dispatch.select(x.device.type, (x, w1, b1, w2, b2, scale_tensor, row_scale, residual), dtype, skip)


def compute_dtype(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> torch.dtype:
    """The dtype of the products: autocast's when it is on, else the promotion; float64 stays, as in nn.Linear."""
    dtype = reference.promoted(x, w1, b1, w2, b2)
    device = x.device.type
    if dtype is torch.float64 or not torch.amp.is_autocast_available(device):
        return dtype
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return dtype


class _Adapter(torch.autograd.Function):
    """(y, z) of the forward op. z is differentiable too: that is how a second backward reaches x through it."""

    @staticmethod
    def forward(x, w1, b1, w2, b2, scale, row_scale, residual, narrow, activation, skip, alpha, dtype, keep_x, keep_z):
        return ops.adapter_forward(
            x, w1, b1, w2, b2, scale, row_scale, residual, activation, skip, alpha, dtype, keep_z
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, w1, b1, w2, b2, scale, row_scale, residual, narrow, activation, skip, alpha, dtype, keep_x, keep_z = inputs
        y, z = output
        kept = x if narrow is None else narrow
        ctx.save_for_backward(kept if keep_x else None, z if keep_z else None, w1, b1, w2, b2, scale, row_scale)
        ctx.call = (activation, skip, alpha, dtype, x.dtype)
        ctx.residual_dtype = None if residual is None else residual.dtype
        ctx.y_shape = y.shape
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, dy, dz):
        if dy is None and dz is None:
            return (None,) * 15
        x, z, w1, b1, w2, b2, scale, row_scale = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:6]  # x, w1, b1, w2, b2, scale
        dresidual = dy.to(ctx.residual_dtype) if ctx.needs_input_grad[7] and dy is not None else None
        grads: list[Tensor | None] = [None] * 6
        # A compiled graph is differentiated once: no gradient reaches z there, though zeros may be given.
        if (dz is not None or torch.is_grad_enabled()) and not torch.compiler.is_compiling():
            dy = w1.new_zeros(ctx.y_shape) if dy is None else dy
            activation, skip, alpha, dtype, x_dtype = ctx.call
            with reference.no_autocast(dy.device.type):
                grads = reference.backward(
                    dy, x, z, w1, b1, w2, b2, scale, row_scale, activation, skip, alpha, dtype, x_dtype, wanted, dz
                )
        elif any(wanted):
            needs = sum(1 << i for i, want in enumerate(wanted) if want)
            if dy.stride(-1) != 1 and dy.shape[-1] != 1:
                dy = dy.contiguous()
            results = ops.adapter_backward(dy, x, z, w1, b1, w2, b2, scale, row_scale, *ctx.call, needs)
            grads = [g if want else None for g, want in zip(results, wanted, strict=True)]
        return *grads, None, dresidual, *(None,) * 7
