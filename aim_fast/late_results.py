"""Several results of one forward, of which the hidden activation is computed only if somebody looks at it.

The operator keeps it in the cache; those who return it beside y rarely have a reader for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from aim_fast import reference

Late = Callable[[], Tensor]


def later_hidden(x: Tensor, w1: Tensor, b1: Tensor | None, activation: str, dtype: torch.dtype) -> Late:
    """A call that gives act(x @ w1.T + b1) [..., H] in the compute dtype as it is now; nothing is computed before.

    It raises RuntimeError once x, w1 or b1 have been written into.
    """
    graded = torch.is_grad_enabled()
    compiling = torch.compiler.is_compiling()
    tracked = [t for t in (x, w1, b1) if not compiling and t is not None and not t.is_inference()]
    versions = [t._version for t in tracked]

    def compute() -> Tensor:
        if [t._version for t in tracked] != versions:
            raise RuntimeError(
                "adapter: the hidden activation is computed when it is first looked at, but x or the down-projection "
                "has been changed in place since the call; look at it before, or aim_fast.unpatch the model"
            )
        with torch.set_grad_enabled(graded), reference.no_autocast(x.device.type):
            z = reference.preactivation(x, w1, b1, dtype)
            return reference.activate(z, activation).view(*x.shape[:-1], -1)

    return compute


def late_results(items: Sequence[Any]) -> tuple[Any, ...]:
    """The items as a tuple in which a `Late` gives its tensor; a compiler drops what nobody looks at by itself."""
    if torch.compiler.is_compiling():
        return tuple([item if isinstance(item, Tensor) else item() for item in items])
    return LateResults(items)


class LateResults(tuple):
    """A tuple of tensors, of which some are computed when they are first looked at."""

    _made: dict[int, Tensor]

    def __new__(cls, items: Sequence[Any]) -> LateResults:
        self = super().__new__(cls, items)
        self._made = {}
        return self

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self)[index]
        item = super().__getitem__(index)
        if isinstance(item, Tensor):
            return item
        index %= len(self)
        if index not in self._made:
            self._made[index] = item()
        return self._made[index]

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __add__(self, other: Any) -> Any:
        return (*self, *other)

    def __reduce__(self) -> Any:
        return tuple, ([*self],)
