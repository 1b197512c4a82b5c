"""`adapter()`: the operator with its mixed-precision rule and its autograd."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aim_fast import dispatch, ops, packed, reference, routing
from aim_fast.checks import check_arguments
from aim_fast.reference import device_type

# Anything of another class may be a DTensor, whose module takes a second to import: only who made one has done so.
_LOCAL = (Tensor, nn.Parameter, type(None), float, int)
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
    DTensors run by the rules of `aim_fast.parallel`.

    Raises:
        TypeError, ValueError: an argument does not fit; the text says which, what is needed and the remedy.

    Source: Adapter of AIM (Yang et al., ICLR 2023).
    """
    check_arguments(x, w1, b1, w2, b2, activation, scale, row_scale, residual)
    if (
        type(w1) not in _LOCAL
        or type(x) not in _LOCAL
        or type(w2) not in _LOCAL
        or type(residual) not in _LOCAL
        or type(scale) not in _LOCAL
    ) and "torch.distributed.tensor" in sys.modules:
        from aim_fast import parallel  # stands above this file: each rank's part is a call of adapter()

        if parallel.on_mesh(x, w1, w2, residual, scale):
            return parallel.adapter(x, w1, b1, w2, b2, activation, skip, scale, row_scale, residual, recompute)
    dtype = compute_dtype(x, w1, b1, w2, b2)
    if type(scale) is not float and isinstance(scale, Tensor):  # isinstance is slow to say no
        alpha, scale_tensor = 1.0, scale
    else:
        alpha, scale_tensor = float(scale), None
    call = (x, w1, b1, w2, b2, scale_tensor, row_scale, residual, activation, skip, alpha, dtype, recompute)
    # An exported program keeps the call whole: it is differentiable, and the backend is chosen where the program runs.
    # torch.compiler.is_exporting is true under torch.compile too in torch 2.10; torch 2.6 has neither, and a program
    # exported there holds what was traced.
    exporting = getattr(torch.compiler, "_is_exporting_flag", False)
    return ops.adapter_exported(*call) if exporting else _run(*call)


def _run(x, w1, b1, w2, b2, scale_tensor, row_scale, residual, activation, skip, alpha, dtype, recompute):
    """`adapter` once its arguments are checked, its dtype is known and its scale is split."""
    tensors = (x, w1, b1, w2, b2, scale_tensor, row_scale, residual)
    backend = dispatch.choose(dispatch.Call(device_type(x), tensors, dtype, skip))
    if backend == "eager":
        return reference.composition(
            x,
            w1,
            b1,
            w2,
            b2,
            activation=activation,
            skip=skip,
            scale=alpha if scale_tensor is None else scale_tensor,
            row_scale=row_scale,
            residual=residual,
            dtype=dtype,
        )
    if x.dim() > MAX_DIMS:
        leading = x.shape[:-1]
        x, shape = x.reshape(-1, x.shape[-1]), x.shape
        row_scale = None if row_scale is None else row_scale.expand(leading).reshape(-1)
        residual = None if residual is None else residual.reshape(x.shape)
        rows = (x, w1, b1, w2, b2, scale_tensor, row_scale, residual)
        return _run(*rows, activation, skip, alpha, dtype, recompute).view(shape)
    if not x.is_contiguous() and x.stride(-1) != 1 and x.shape[-1] != 1:
        x = x.contiguous()
    if residual is not None and residual.stride(-1) != 1 and residual.shape[-1] != 1:
        residual = residual.contiguous()
    traced = torch.compiler.is_compiling()
    through_z = torch.is_grad_enabled() and _any_requires_grad((x, w1, b1, w2, scale_tensor))
    if not (through_z or (torch.is_grad_enabled() and _any_requires_grad((b2, row_scale, residual)))):
        if backend == "cpu" and not traced and packed.is_kept(w1, w2):
            return packed.forward(x, w1, b1, w2, b2, scale_tensor, row_scale, residual, activation, skip, alpha, dtype)
        forward = _forward_of(backend, traced, tensors)
        named = ops.NUMBER_OF[dtype] if backend == "cpu" else dtype
        return forward(*tensors, activation, skip, alpha, named, False, False)[0]
    keep_z = through_z and not recompute
    keep_x = w1.requires_grad or (through_z and recompute)
    apply = _Adapter.apply if traced else _apply
    call = (activation, skip, alpha, dtype, keep_x, keep_z, traced, backend)  # as one: apply looks at each argument
    return apply(x, w1, b1, w2, b2, scale_tensor, row_scale, residual, call)[0]


def _forward_of(backend: str, traced: bool, tensors: Sequence[Tensor | None]) -> Callable[..., Any]:
    """The forward op, which runs on this backend, as directly as can be."""
    if backend == "cpu":
        return ops.adapter_forward if traced else ops.run_forward
    return routing.forward_on(backend, tensors)


def _any_requires_grad(tensors: Sequence[Tensor | None]) -> bool:
    for t in tensors:  # noqa: SIM110, a generator costs more
        if t is not None and t.requires_grad:
            return True
    return False


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
    tensors = (x, w1, b1, w2, b2, scale_tensor, row_scale, residual)
    return dispatch.select(dispatch.Call(device_type(x), tensors, dtype, skip))


def compute_dtype(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> torch.dtype:
    """The dtype of the products: autocast's when it is on, else the promotion; float64 stays, as in nn.Linear."""
    dtype = x.dtype
    # Mostly they are one; to find that out here is half the time of a call for it.
    if not (
        w1.dtype is dtype
        and w2.dtype is dtype
        and (b1 is None or b1.dtype is dtype)
        and (b2 is None or b2.dtype is dtype)
    ):
        dtype = reference.promoted(x, w1, b1, w2, b2)
    device = device_type(x)
    if dtype is torch.float64 or not reference.has_autocast(device):
        return dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype


class _Adapter(torch.autograd.Function):
    """The forward op. What it keeps is differentiable too: that is how a second backward reaches x through it.

    The backward runs on the forward's backend.
    """

    @staticmethod
    def forward(x, w1, b1, w2, b2, scale, row_scale, residual, call):
        activation, skip, alpha, dtype, keep_x, keep_z, traced, backend = call
        tensors = (x, w1, b1, w2, b2, scale, row_scale, residual)
        forward = _forward_of(backend, traced, tensors)
        named = ops.NUMBER_OF[dtype] if backend == "cpu" else dtype
        return forward(*tensors, activation, skip, alpha, named, keep_z, keep_x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, w1, b1, w2, b2, scale, row_scale, residual, call = inputs
        activation, skip, alpha, dtype, keep_x, keep_z, _, ctx.backend = call
        y, z, x_kept = output
        if not ops.narrows(x, dtype):
            x_kept = x
        ctx.save_for_backward(x_kept if keep_x else None, z if keep_z else None, w1, b1, w2, b2, scale, row_scale)
        ctx.call = (activation, skip, alpha, dtype, x.dtype)
        if residual is not None:
            ctx.residual_dtype = residual.dtype
        ctx.y_shape = y.shape
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, dy, dz, dx_kept):
        if dy is None and dz is None:
            # The gradient of a gradient that used neither.
            dx = dx_kept.to(ctx.call[-1]) if dx_kept is not None and ctx.needs_input_grad[0] else None
            return dx, *(None,) * 8
        x, z, w1, b1, w2, b2, scale, row_scale = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:6]  # x, w1, b1, w2, b2, scale
        dresidual = dy.to(ctx.residual_dtype) if ctx.needs_input_grad[7] and dy is not None else None
        grads: list[Tensor | None] = [None] * 6
        # A compiled graph is differentiated once: no gradient reaches what is kept, though zeros may be given.
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
            activation, skip, alpha, dtype, x_dtype = ctx.call
            tensors = (dy, x, z, w1, b1, w2, b2, scale, row_scale)
            backward: Callable[..., Any] = ops.adapter_backward
            if ctx.backend == "cpu":
                dtype, x_dtype = ops.NUMBER_OF[dtype], ops.NUMBER_OF[x_dtype]
            else:
                backward = routing.backward_on(ctx.backend, tensors)
            results = backward(*tensors, activation, skip, alpha, dtype, x_dtype, needs)
            grads = [g if want else None for g, want in zip(results, wanted, strict=True)]
        if dx_kept is not None and grads[0] is not None and not torch.compiler.is_compiling():
            grads[0] = grads[0] + dx_kept.to(grads[0].dtype)
        return *grads, None, dresidual, None


# What `_Adapter.apply` comes to outside functorch transforms, which dispatch sends to the composition. Measured: Zen 4,
# M = 7: without binding the arguments to the signature of `forward` at every call, 87 us of a call are 40.
_apply = super(torch.autograd.Function, _Adapter).apply
ops._library.impl("adapter", _run, "CompositeImplicitAutograd")
