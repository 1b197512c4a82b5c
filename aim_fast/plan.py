"""How the forward of a module that others wrote maps to one call of the operator, and that call.

A plan says where things are, never what they are: weights, biases, scale, activation, training modes and hooks are read
from the module at every call. A call that the plan does not cover runs as its author wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from aim_fast.checks import DTYPES
from aim_fast.functional import adapter, compute_dtype
from aim_fast.late_results import late_results, later_hidden
from aim_fast.layers import activation_name, is_idle_dropout, is_plain, is_plain_linear, is_plain_tensor

Path = tuple[str, ...]  # the names that lead from the module to a descendant or an attribute


class Given(Enum):
    """What stands for an argument in the key of a form, where it is not the value itself."""

    ABSENT = "absent"
    TENSOR = "tensor"


class Skip(Enum):
    """What the forward adds to scale * f(x)."""

    NONE = "0"
    X = "x"
    SCALED = "scale * x"


class Result(Enum):
    """One of several results of a forward."""

    Y = "y"
    BRANCH = "scale * f(x)"
    HIDDEN = "act(x @ w1.T + b1)"


@dataclass(frozen=True)
class Form:
    """A way to call the forward: what its arguments after the first are, and what comes out."""

    key: tuple[Any, ...]
    skip: Skip
    residual: int | None  # of the arguments after the first, the one that is added
    results: tuple[Result, ...] | None  # None: y alone, not in a tuple


@dataclass(frozen=True)
class Plan:
    """Everything that a call needs to know, found out by `recognition` and held against the module by `verification`.

    names: of the forward's parameters; the first is x, `positional` of them may come without their name.
    act: the child that is the activation, or None where it is `activation` for good.
    scale: a number for good, or the path of an attribute or parameter.
    others: the remaining descendants, with the class that each has to be; guards: attributes with the value that each
    has to have; same: pairs of paths that have to lead to one module.
    ranks: numbers of dimensions of x. training: whether a call in training mode is covered.
    """

    names: tuple[str, ...]
    positional: int
    forms: tuple[Form, ...]
    down: Path
    up: Path
    act: Path | None
    activation: str
    scale: float | Path
    dropouts: tuple[Path, ...]
    others: tuple[tuple[Path, type], ...]
    guards: tuple[tuple[Path, str, Any], ...]
    same: tuple[tuple[Path, Path], ...]
    ranks: frozenset[int]
    training: bool

    def formula(self) -> str:
        """The call in words, as the first form has it, and what is not covered."""
        form = self.forms[0]
        path = f"{self.scale:g}" if isinstance(self.scale, float) else ".".join(self.scale)
        scale = "" if self.scale == 1.0 else f"{path} * "
        added = {Skip.NONE: "", Skip.X: " + x", Skip.SCALED: f" + {scale}x"}[form.skip]
        residual = "" if form.residual is None else f" + {self.names[1 + form.residual]}"
        ranks = "" if self.ranks >= {1, 2, 3, 4, 5} else f"; eager unless x has {_listed(self.ranks)} dimensions"
        training = "" if self.training else "; eager in training mode"
        return f"{scale}f(x){added}{residual}, {self.activation}{ranks}{training}"


def _listed(numbers: Iterable[int]) -> str:
    *most, last = map(str, sorted(numbers))
    return f"{', '.join(most)} or {last}" if most else last


def descendant(module: nn.Module, path: Path) -> nn.Module | None:
    """The module at the end of path, or None where there is none any more."""
    found: nn.Module | None = module
    for name in path:
        found = None if found is None else found._modules.get(name)
    return found


def frozen(value: Any) -> Any:
    """A setting as it is now: lists and dicts, which change in place, as tuples."""
    if type(value) in (tuple, list):
        return tuple([frozen(item) for item in value])
    return tuple([(key, frozen(item)) for key, item in value.items()]) if type(value) is dict else value


def read_scale(plan: Plan, module: nn.Module) -> Any:
    """The scale as the module holds it now."""
    if isinstance(plan.scale, float):
        return plan.scale
    owner = descendant(module, plan.scale[:-1])
    return getattr(owner, plan.scale[-1], None)


def unmet(plan: Plan, module: nn.Module) -> str:
    """Why the module's present state is not what the plan was made for, or an empty string."""
    if module.training and not plan.training:
        return "in training mode"
    for path in (plan.down, plan.up):
        linear = descendant(module, path)
        if linear is None or not is_plain_linear(linear):
            return f"{'.'.join(path)} is no plain nn.Linear"
    for path in plan.dropouts:
        dropout = descendant(module, path)
        if dropout is None or not is_idle_dropout(dropout):
            return f"{'.'.join(path)} is active"
    for path, kind in plan.others:
        other = descendant(module, path)
        if other is None or type(other) is not kind or not is_plain(other):
            return f"{'.'.join(path)} has changed"
    for path, name, value in plan.guards:
        now = frozen(getattr(descendant(module, path), name, None))
        if type(now) is not type(value) or now != value:
            return f"{'.'.join((*path, name))} is {now!r}"
    if any(descendant(module, a) is not descendant(module, b) for a, b in plan.same):
        return "a child has been replaced under one of its names"
    return ""


def _is_input(t: Tensor) -> bool:
    return t.dtype in DTYPES and is_plain_tensor(t)


def _bind(plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Form, Tensor, list[Any]] | None:
    """The form of this call, x, and the arguments after it; None for a call that no form covers."""
    if len(args) > plan.positional or any(name not in plan.names[len(args) :] for name in kwargs):
        return None
    x, *rest = (*args, *(kwargs.get(name, Given.ABSENT) for name in plan.names[len(args) :]))
    if not isinstance(x, Tensor) or not _is_input(x) or x.dim() not in plan.ranks:
        return None
    key = [Given.TENSOR if isinstance(value, Tensor) else value for value in rest]
    for form in plan.forms:
        if all(type(a) is type(b) and a == b for a, b in zip(form.key, key, strict=True)):
            return form, x, rest
    return None


def fused(plan: Plan, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the module's forward returns for these arguments, by the operator; NotImplemented if it has to run."""
    bound = _bind(plan, args, kwargs)
    if bound is None or unmet(plan, module):
        return NotImplemented
    form, x, rest = bound
    down: Any = descendant(module, plan.down)
    up: Any = descendant(module, plan.up)
    act = None if plan.act is None else descendant(module, plan.act)
    activation = plan.activation if plan.act is None else act and activation_name(act)
    scale, residual = read_scale(plan, module), None if form.residual is None else rest[form.residual]
    H, D = down.weight.shape
    if not activation or up.weight.shape != (D, H) or x.shape[-1] != D:
        return NotImplemented
    if residual is not None and (residual.shape != x.shape or not _is_input(residual)):
        return NotImplemented
    wide = None
    if isinstance(scale, Tensor):
        if scale.numel() not in (1, D) or scale.numel() != scale.shape[-1:].numel():
            return NotImplemented
        wide = scale.dtype if scale.dim() else None  # one without dimensions leaves the dtype alone, like a number
    elif not isinstance(scale, (int, float)):
        return NotImplemented
    factor = scale.reshape(-1) if isinstance(scale, Tensor) else float(scale)

    def run(skip: bool, residual: Tensor | None) -> Tensor:
        weights = (down.weight, down.bias, up.weight, up.bias)
        y = adapter(x, *weights, activation=activation, scale=factor, skip=skip, residual=residual)
        return y if wide is None else y.to(torch.promote_types(y.dtype, wide))

    if form.results is None or Result.BRANCH not in form.results:
        branch = None
        # scale * (f + x), with the second term as the residual: the backward keeps no more than x.
        scaled = form.skip is Skip.SCALED and not (isinstance(factor, float) and factor == 1.0)
        y = run(False, scale * x) if scaled else run(form.skip is not Skip.NONE, residual)
    else:
        y = branch = run(False, None)
        if form.skip is not Skip.NONE:
            y = y + (x if form.skip is Skip.X else scale * x)
        if residual is not None:
            y = y + residual
    if form.results is None:
        return y
    dtype = compute_dtype(x, down.weight, down.bias, up.weight, up.bias)
    hidden = later_hidden(x, down.weight, down.bias, activation, dtype)
    made = {Result.Y: y, Result.BRANCH: branch, Result.HIDDEN: hidden}
    return late_results([made[result] for result in form.results])
