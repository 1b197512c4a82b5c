"""One call of the operator three ways: fused, eager in the same dtype, exact in float64; and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

import aim_fast
from aim_fast import testing
from aim_fast.reference import composition

# Tensors by the name of their argument, to be passed on with ** beside any other arguments; None where there is none.
Tensors = dict[str, Any]
make_inputs: Callable[..., Tensors] = testing.make_inputs
# The arguments that have a gradient.
TRAINABLE = ("x", "w1", "b1", "w2", "b2", "residual", "scale")
# The results whose rows are rows of x.
BY_ROW = ("y", "dx", "dresidual")


def evaluate(
    function: Callable[..., Tensor],
    tensors: Tensors,
    dy: Tensor | None,
    *,
    wanted: Iterable[str] = TRAINABLE,
    **options: Any,
) -> dict[str, Tensor]:
    """{"y": ..., "dx": ..., ...}: what function returns, and the gradients of `wanted` when the output's is dy."""
    leaves: Tensors = {name: None if t is None else t.detach() for name, t in tensors.items()}
    trained = [name for name, t in leaves.items() if name in wanted and t is not None]
    for name in trained:
        leaves[name].requires_grad_()
    y = function(**leaves, **options)
    if dy is None or not trained:
        return {"y": y.detach()}
    grads = torch.autograd.grad(y, [leaves[name] for name in trained], dy.to(y.dtype))
    return {"y": y.detach(), **{f"d{name}": grad for name, grad in zip(trained, grads, strict=True)}}


def exact(tensors: Tensors, dy: Tensor | None, **options: Any) -> dict[str, Tensor]:
    """The truth: the composition in float64."""
    doubles = {name: None if t is None else t.double() for name, t in tensors.items()}
    return evaluate(composition, doubles, None if dy is None else dy.double(), **options)


def assert_judged(
    fused: Mapping[str, Tensor], eager: Mapping[str, Tensor], truth: Mapping[str, Tensor], *, per_row: bool = False
) -> None:
    """Same names, shapes and dtypes as eager, and every error within the budget; all failures in one message."""
    assert fused.keys() == eager.keys() == truth.keys()
    failures = []
    for name in fused:
        try:
            testing.assert_within_budget(
                name, fused[name], eager[name], truth[name], per_row=per_row and name in BY_ROW
            )
        except AssertionError as failure:
            failures.append(str(failure))
    assert not failures, "; ".join(failures)


def judge(tensors: Tensors, dy: Tensor | None, *, per_row: bool = False, **options: Any) -> dict[str, Tensor]:
    """Judge `aim_fast.adapter` for y and every gradient; returns its results."""
    fused = evaluate(aim_fast.adapter, tensors, dy, **options)
    assert_judged(fused, evaluate(composition, tensors, dy, **options), exact(tensors, dy, **options), per_row=per_row)
    return fused
