"""Adapters on several processes: tensor parallelism, and `adapter()` on DTensors.

    y = sum over ranks r of  scale * row_scale * (act(x @ w1_r.T + b1_r) @ w2_r.T [+ b2]) [+ x] [+ residual]

Cut       the hidden width: rank r holds rows of w1 and b1 and columns of w2; x, b2, scale and y are whole everywhere
Once      what stands in brackets is added by the first rank, inside its fused call
Traffic   one all-reduce of y in the forward, one of dx in the backward (and of dscale, when the scale is trained)
Rounding  each rank rounds its part of y before the sum, as RowwiseParallel does

Replicated weights need no traffic but for their own gradients, which are sums over the parts of x.

Source: Megatron-LM (Shoeybi et al., 2019), its column and row parallel layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_reduce, wait_tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from aim_fast import functional, reference
from aim_fast.module import _Bottleneck

WHOLE = Replicate()
# How the weights may lie: the hidden width cut, or whole on every rank.
RULES: dict[str, dict[str, Placement]] = {
    "tensor parallel": {"w1": Shard(0), "b1": Shard(0), "w2": Shard(1), "b2": WHOLE},
    "replicated": {"w1": WHOLE, "b1": WHOLE, "w2": WHOLE, "b2": WHOLE},
}


def shard_adapters(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Cut the hidden width of every aim_fast adapter in `model` over a one-dimensional mesh, in place.

    Args:
        model: holds `Adapter`, `SAdapter2` or `T_Adapter` modules, with the same weights on every rank (those of the
            first rank count). All else in it is left alone.
        mesh: from `torch.distributed.device_mesh.init_device_mesh`; a dimension of a larger one is `mesh["tp"]`.

    Returns:
        model. The parameters of its adapters are DTensors, as optimizers and checkpoints know them; calls take and give
        plain tensors that are the same on every rank. `fully_shard` may follow, over another dimension of the mesh.

    Raises:
        ValueError: the mesh has several dimensions, or a hidden width does not divide by its size.
    """
    if mesh.ndim != 1:
        raise ValueError(f"shard_adapters: mesh has {mesh.ndim} dimensions; expected 1; name one of them: mesh['tp']")
    adapters = {name: module for name, module in model.named_modules() if isinstance(module, _Bottleneck)}
    for name, module in adapters.items():
        hidden = module.D_fc1.weight.shape[0]
        if hidden % mesh.size():
            raise ValueError(
                f"shard_adapters: {name or 'model'} has H = {hidden}; expected a multiple of the {mesh.size()} ranks "
                "of the mesh; choose another mlp_ratio or leave this adapter replicated"
            )
    rule = RULES["tensor parallel"]
    for module in adapters.values():
        for linear, weight, bias in ((module.D_fc1, "w1", "b1"), (module.D_fc2, "w2", "b2")):
            for name, placement in (("weight", rule[weight]), ("bias", rule[bias])):
                whole = getattr(linear, name)
                if whole is not None:
                    part = distribute_tensor(whole.detach(), mesh, [placement])
                    linear.register_parameter(name, nn.Parameter(part, requires_grad=whole.requires_grad))
    return model


def on_mesh(*tensors: Tensor | float | None) -> bool:
    """Whether one of the tensors is a DTensor."""
    return any(isinstance(t, DTensor) for t in tensors)


def adapter(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    activation: str,
    skip: bool,
    scale: float | Tensor,
    row_scale: Tensor | None,
    residual: Tensor | None,
    recompute: bool,
) -> Tensor:
    """`aim_fast.adapter` where weights, x or both are DTensors; arguments as there.

    Returns y as x is: a DTensor placed as x, or a plain tensor that is the same on every rank.

    Raises ValueError for tensors that lie otherwise than a rule of this file says.
    """
    mesh = next(t.device_mesh for t in (w1, x, w2, residual, scale) if isinstance(t, DTensor))
    weights = {"w1": w1, "b1": b1, "w2": w2, "b2": b2}
    rule = next((rule for rule in RULES if _placement(w1) == RULES[rule]["w1"]), "tensor parallel")
    for name, t in weights.items():
        _expect(name, t, mesh, RULES[rule][name])
    place = _place_of_x(x, mesh, rule)
    if isinstance(residual, DTensor) and not isinstance(x, DTensor):
        raise ValueError(
            "adapter: residual is a DTensor but x is not; expected two of a kind; use residual.full_tensor()"
        )
    if isinstance(x, DTensor):
        _expect("residual", residual, mesh, place)
    for name, factor in (("scale", scale), ("row_scale", row_scale)):
        if isinstance(factor, DTensor):
            _expect(name, factor, mesh, WHOLE)
    if place != WHOLE:
        if row_scale is not None:
            raise ValueError(f"adapter: x is placed {place} and row_scale given; expected x whole or no row_scale")
        if isinstance(scale, Tensor) and scale.requires_grad and not isinstance(scale, DTensor):
            raise ValueError(
                "adapter: scale is trained and no DTensor, but x is in parts; distribute it as Replicate()"
            )

    sums: list[Placement] | None = None if place == WHOLE else [Partial()]  # over the rows of every rank
    parts = [_local(t, sums) for t in (w1, b1, w2, b2)]
    own = _local(scale, sums) if isinstance(scale, Tensor) else scale
    options = {"activation": activation, "scale": own, "row_scale": _local(row_scale), "recompute": recompute}
    call = _summed if rule == "tensor parallel" else _apart
    y = call(mesh, _local(x), *parts, skip=skip, residual=_local(residual), **options)  # type: ignore[arg-type]
    if not isinstance(x, DTensor):
        return y
    whole = torch.empty(x.shape, device="meta")
    return DTensor.from_local(y, mesh, [place], run_check=False, shape=whole.shape, stride=whole.stride())


def _apart(mesh: DeviceMesh, *tensors: Tensor | None, **options: Any) -> Tensor:
    """Every rank for itself."""
    return functional.adapter(*tensors, **options)  # type: ignore[arg-type]


def _summed(
    mesh: DeviceMesh,
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    skip: bool,
    scale: float | Tensor,
    residual: Tensor | None,
    **options: Any,
) -> Tensor:
    """Each rank its part of the hidden width, the first one also what is added once; then the sum."""
    first = mesh.get_local_rank() == 0
    out = reference.output_dtype(functional.compute_dtype(x, w1, b1, w2, b2), x, skip, residual)
    y = functional.adapter(
        _Copied.apply(x, mesh),
        w1,
        b1,
        w2,
        None if b2 is None else _Once.apply(b2, first),
        skip=skip and first,
        scale=_Copied.apply(scale, mesh) if isinstance(scale, Tensor) else scale,
        residual=residual.detach() if residual is not None and first else None,
        **options,
    )
    return _Summed.apply(y.to(out), residual, mesh)


def _sum(t: Tensor, mesh: DeviceMesh) -> Tensor:
    """The sum of t over the ranks, in a form that torch.compile traces."""
    return wait_tensor(all_reduce(t, "sum", mesh))


class _Copied(torch.autograd.Function):
    """t, which every rank uses for a part of y: its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, t: Tensor, mesh: DeviceMesh) -> Tensor:
        ctx.mesh = mesh
        return t.view_as(t)

    @staticmethod
    def backward(ctx, grad):
        return _Summed.apply(grad.contiguous(), None, ctx.mesh), None


class _Summed(torch.autograd.Function):
    """The sum of y over the ranks. The residual, which is in it already, takes its gradient here."""

    @staticmethod
    def forward(ctx, y: Tensor, residual: Tensor | None, mesh: DeviceMesh) -> Tensor:
        ctx.mesh = mesh
        ctx.residual_dtype = None if residual is None else residual.dtype
        return _sum(y, mesh)

    @staticmethod
    def backward(ctx, grad):
        dresidual = grad.to(ctx.residual_dtype) if ctx.needs_input_grad[1] else None
        return _Copied.apply(grad, ctx.mesh), dresidual, None


class _Once(torch.autograd.Function):
    """b2 on the first rank and zero on the others; each finds the whole gradient by itself, from dy alone."""

    @staticmethod
    def forward(ctx, b2: Tensor, first: bool) -> Tensor:
        return b2.view_as(b2) if first else torch.zeros_like(b2)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def _local(t: Tensor | None, sums: list[Placement] | None = None) -> Tensor | None:
    """This rank's part of t, whose gradient lies as t does, or as `sums` says."""
    return t.to_local(grad_placements=sums) if isinstance(t, DTensor) else t


def _placement(t: Tensor) -> Placement | None:
    return t.placements[0] if isinstance(t, DTensor) else None


def _place_of_x(x: Tensor, mesh: DeviceMesh, rule: str) -> Placement:
    """Where x lies: whole, or cut along a leading dimension where the weights are replicated."""
    place = _placement(x)
    if place is None:
        return WHOLE
    if rule == "replicated" and isinstance(place, Shard) and place.dim % x.dim() < x.dim() - 1:
        _expect("x", x, mesh, place)
        return place
    _expect("x", x, mesh, WHOLE)
    return WHOLE


def _expect(name: str, t: Tensor | float | None, mesh: DeviceMesh, needed: Placement) -> None:
    """Raise ValueError unless t is None, or a DTensor on this mesh, placed as needed."""
    if t is None:
        return
    if not isinstance(t, DTensor):
        raise ValueError(
            f"adapter: {name} is a plain tensor beside DTensors; expected a DTensor placed {needed}; "
            f"use distribute_tensor({name}, mesh, [...]), or aim_fast.parallel.shard_adapters for a model"
        )
    if mesh.ndim != 1 or t.device_mesh != mesh or t.placements != (needed,):
        raise ValueError(
            f"adapter: {name} lies as {t.placements} on {t.device_mesh}; expected {needed} on one dimension of a mesh, "
            f"the same for all; use {name}.redistribute(...); the rules are in aim_fast.parallel"
        )
