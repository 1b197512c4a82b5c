"""Patched modules beside the originals: what the tests about `patch` share."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import aim_fast
from judge import assert_judged


def drawn(module: nn.Module) -> nn.Module:
    """The module with weights, biases and scales of real sizes, none of them zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            gain = 1.0 if parameter.dim() < 2 else parameter.shape[-1] ** -0.5
            parameter.copy_(torch.randn_like(parameter) * gain + 0.1)
    return module


def step(module: nn.Module, x: Tensor, rest: tuple[Tensor, ...], dy: Tensor) -> dict[str, Tensor]:
    """y and the gradients of everything, by name."""
    module.zero_grad()
    leaves = [t.detach().clone().requires_grad_() for t in (x, *rest)]
    results = module(*leaves)
    ys = results if isinstance(results, tuple) else (results,)
    sum((y * dy[..., : y.shape[-1]].to(y.dtype)).sum() for y in ys).backward()
    grads = {f"dinput{i}": leaf.grad for i, leaf in enumerate(leaves)}
    grads |= {f"d{name}": p.grad for name, p in module.named_parameters()}
    return {f"y{i}": y.detach() for i, y in enumerate(ys)} | {name: g for name, g in grads.items() if g is not None}


def assert_same_step(patched: nn.Module, original: nn.Module, inputs: int, dtype: torch.dtype, *shape: int) -> None:
    """Results and gradients within the budget, the original in float64 being the truth."""
    x, dy, *rest = torch.randn(2 + inputs, *shape).to(dtype)
    theirs = step(original, x, tuple(rest), dy)
    exact = step(copy.deepcopy(original).double(), x.double(), tuple(t.double() for t in rest), dy.double())
    assert_judged(step(patched, x, tuple(rest), dy), theirs, exact)


def patched_copy(original: nn.Module, calls: list[dict]) -> Any:
    """A patched copy; the calls of the operator count from here."""
    patched = copy.deepcopy(original)
    report = aim_fast.patch(patched)
    assert report.taken == ("",), str(report)
    calls.clear()
    return patched
