"""A copy of an adapter, and the questions put to it: calls with random weights, of every form that it takes."""

from __future__ import annotations

import inspect
import itertools
import random
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from aim_fast.layers import own_attributes
from aim_fast.plan import Given, Path, descendant
from aim_fast.recognition import RefusedError, copy_of, plain_tensors, structure

RANKS = {3: (2, 3), 4: (2, 2, 3), 2: (3,), 5: (2, 1, 2, 3), 1: ()}  # number of dimensions of x: the leading ones
_TOLERANCE = 1e-9
_MOST_ARGUMENTS = 3  # after x; calls that give more of them run as written

Key = tuple[Any, ...]  # of a form: what its arguments after the first are


def same(a: Tensor, b: Tensor) -> bool:
    """Equal but for the rounding of float64, in which two ways to compute one thing agree and two things do not."""
    if a.shape != b.shape or a.dtype is not b.dtype:
        return False
    return bool((a - b).abs().max() <= _TOLERANCE * (1 + b.abs().max()))


class Call:
    """One call of a form: x and the other arguments. Those that are tensors are leaves that require grad."""

    def __init__(self, x: Tensor, names: tuple[str, ...], positional: int, key: Key) -> None:
        self.x = x
        self.rest = [torch.randn_like(x).requires_grad_() if value is Given.TENSOR else value for value in key]
        self._names, self._positional = names, positional

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What to call with, by place as far as that goes. Tensors are copies: a forward may write into them."""
        named = {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in zip(self._names, self.rest, strict=True)
            if value is not Given.ABSENT
        }
        args: list[Any] = [self.x.clone()]
        for name in self._names[: self._positional]:
            if name not in named:
                break
            args.append(named.pop(name))
        return tuple(args), named

    @property
    def tensors(self) -> dict[int, Tensor]:
        """The arguments after x that are tensors, by their place."""
        return {i: value for i, value in enumerate(self.rest) if isinstance(value, Tensor)}


class Probe:
    """The copy, its structure, and the keys of the forms in which its forward may be called.

    Raises RefusedError as `copy_of` and `structure` do, and for a forward that no form fits.
    """

    def __init__(self, module: nn.Module) -> None:
        self.copy = copy_of(module).eval()
        self.parts = structure(self.copy)
        parameters = inspect.signature(self.copy.forward).parameters.values()
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if not named:
            raise RefusedError("its forward names no input")
        self.names = tuple(p.name for p in named)
        self.positional = sum(p.kind is not p.KEYWORD_ONLY for p in named)
        choices = [_choices(p) if i < _MOST_ARGUMENTS else _choices(p)[:1] for i, p in enumerate(named[1:])]
        self.keys: list[Key] = [*itertools.product(*choices)]
        found = {path: self._get(path) for path in self.parts.scales}
        self.attributes = {path: value for path, value in found.items() if not isinstance(value, Tensor)}

    def _get(self, path: Path) -> Any:
        return getattr(descendant(self.copy, path[:-1]), path[-1])

    def set(self, path: Path, value: Any) -> None:
        setattr(descendant(self.copy, path[:-1]), path[-1], value)

    def value(self, path: Path) -> Tensor:
        """A scale as it is in the copy, [] or [D] in float64."""
        found = torch.as_tensor(self._get(path), dtype=torch.float64, device="cpu").detach()
        return found.reshape(()) if found.numel() == 1 else found.reshape(-1)

    def draw(self) -> None:
        """Weights and tensor scales as no initialisation leaves them; attributes as the module has them."""
        with torch.no_grad():
            plain = [t for part in self.copy.modules() for t in plain_tensors(part).values()]
            for t in (*self.copy.parameters(), *self.copy.buffers(), *plain):
                if t.is_floating_point():
                    t.uniform_(-0.75, 1.0)
                    t.requires_grad_(isinstance(t, nn.Parameter))
        for path, value in self.attributes.items():
            self.set(path, value)

    def draw_attributes(self, paths: Iterable[Path]) -> None:
        """The numbers at paths become others: floats random within 0.2 and 0.9, as a probability may be one of them."""
        for path in paths:
            value = self.attributes.get(path)
            if value is not None:
                self.set(path, random.uniform(0.2, 0.9) if isinstance(value, float) else value + 2)

    def call(self, key: Key, rank: int) -> Call:
        x = torch.randn(*RANKS[rank], self.parts.D, dtype=torch.float64, device="cpu", requires_grad=True)
        return Call(x, self.names[1:], self.positional - 1, key)

    def run(self, call: Call) -> Tensor | tuple[Tensor, ...]:
        """What the forward returns. Raises RefusedError where it does more than that, or returns something else."""
        state = self._state()
        args, kwargs = call.arguments()
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        versions = [t._version for t in given]
        results = self.copy.forward(*args, **kwargs)
        if versions != [t._version for t in given]:
            raise RefusedError("its forward writes into its input")
        if state != self._state():
            raise RefusedError("its forward changes the module's own state")
        if type(results) is tuple and results and all(isinstance(y, Tensor) for y in results):
            return results
        if not isinstance(results, Tensor):
            raise RefusedError(f"its forward returns a {type(results).__name__}, not a tensor")
        return results

    def _state(self) -> list[Any]:
        own = [{name: repr(value) for name, value in own_attributes(part).items()} for part in self.copy.modules()]
        return [own, [t._version for t in self.copy.buffers()]]


def _choices(parameter: inspect.Parameter) -> tuple[Any, ...]:
    if parameter.default is inspect.Parameter.empty:
        return (Given.TENSOR,)
    if parameter.default is None:
        return (Given.ABSENT, None, Given.TENSOR)
    # None is how callers often say no.
    return (Given.ABSENT, True, False, None) if isinstance(parameter.default, bool) else (Given.ABSENT,)
