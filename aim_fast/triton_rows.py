"""The leading dimensions of a call's tensors as the at most three that the Triton kernels walk (kernels/blocks.py)."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

MAX_DIMS = 3
# In the tile of a kernel offsets have 32 bits where rows have one dimension; a tile has at most 2^8 rows.
_FAR = 1 << 22


class Rows(NamedTuple):
    """Leading dimensions of several tensors, merged together: `dims` of them, and three strides for each tensor."""

    dims: int
    n1: int
    n2: int
    strides: tuple[tuple[int, int, int], ...]


@functools.lru_cache(maxsize=1024)
def fold(sizes: tuple[int, ...], *strides: tuple[int, ...]) -> Rows | None:
    """Rows of tensors with these leading sizes and strides, adjacent dimensions merged where all tensors allow it.

    None where more than three remain.
    """
    merged: list[tuple[int, tuple[int, ...]]] = []  # size and strides, the innermost first
    for i in reversed(range(len(sizes))):
        size, step = sizes[i], tuple(s[i] for s in strides)
        if size == 1:
            continue
        if merged and all(outer == inner * merged[-1][0] for outer, inner in zip(step, merged[-1][1], strict=True)):
            merged[-1] = (size * merged[-1][0], merged[-1][1])
        else:
            merged.append((size, step))
    if len(merged) > MAX_DIMS:
        return None
    dims = max(len(merged), 1)
    if dims == 1 and merged and max(merged[0][1]) >= _FAR:
        dims = 2
    merged += [(1, (0,) * len(strides))] * (MAX_DIMS - len(merged))
    (n2, inner), (n1, middle), (_, outer) = merged
    return Rows(dims, n1, n2, tuple(zip(outer, middle, inner, strict=True)))


def rows_of(leading: torch.Size, *tensors: Tensor | None) -> Rows | None:
    """`fold` for tensors of these leading dimensions; None is a tensor that is not there."""
    dims = len(leading)
    absent = (0,) * dims
    return fold(leading, *[absent if t is None else t.stride()[:dims] for t in tensors])


def unit_stride(t: Tensor) -> Tensor:
    """t, copied unless its last dimension has stride 1."""
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()
