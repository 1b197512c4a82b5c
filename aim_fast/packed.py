"""Weights that are kept packed for the CPU kernel between calls; `aim_fast.prepack` fills this, the operator asks it.

A buffer is good for one pair of weights, one compute dtype and one instruction set. It is renewed when one of the
weights has changed in place, by PyTorch's version counter or, since writes through `.data` escape that, by 64 elements
of each that the kernel compares at every call: a call on a buffer that does not fit packs the weights itself.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class _Pair:
    """The weights of one adapter, and their buffer for each compute dtype with the versions that it was made from."""

    w1: weakref.ref[Tensor]
    w2: weakref.ref[Tensor]
    buffers: dict[torch.dtype, tuple[tuple[int, int], Tensor]] = field(default_factory=dict)


_pairs: dict[int, _Pair] = {}  # by id of w1


def keep(w1: Tensor, w2: Tensor) -> None:
    """Pack these weights, [H, D] and [D, H], when a call first needs them, and keep them so as long as they live."""
    key = id(w1)

    def forget_dead(ref: weakref.ref[Tensor]) -> None:
        # Another tensor may have taken the id of one that is gone.
        pair = _pairs.get(key)
        if pair is not None and (ref is pair.w1 or ref is pair.w2):
            del _pairs[key]

    _pairs[key] = _Pair(weakref.ref(w1, forget_dead), weakref.ref(w2, forget_dead))


def forget(w1: Tensor) -> None:
    """Keep these weights packed no longer."""
    _pairs.pop(id(w1), None)


def is_kept(w1: Tensor, w2: Tensor) -> bool:
    """Whether `keep` was called for this very pair."""
    pair = _pairs.get(id(w1))
    return pair is not None and pair.w1() is w1 and pair.w2() is w2


def forward(x, w1, b1, w2, b2, scale, row_scale, residual, activation, skip, alpha, dtype) -> Tensor:
    """y of the forward op for weights that `is_kept`, on their buffer."""
    pair = _pairs[id(w1)]
    versions = (_version(w1), _version(w2))
    made_from, buffer = pair.buffers.get(dtype, (None, None))
    if buffer is None or made_from != versions:
        buffer = _pack(pair, w1, w2, dtype, versions)
    call = (w1, b1, w2, b2, scale, row_scale, residual, activation, skip, alpha, dtype)
    y, fitted = torch.ops.aim_fast.cpu_forward_prepacked(x, buffer, *call)
    if not fitted:
        _pack(pair, w1, w2, dtype, versions)
    return y


def _version(t: Tensor) -> int:
    return -1 if t.is_inference() else t._version  # a tensor of inference mode has no counter


def _pack(pair: _Pair, w1: Tensor, w2: Tensor, dtype: torch.dtype, versions: tuple[int, int]) -> Tensor:
    buffer: Tensor = torch.ops.aim_fast.cpu_prepack(w1, w2, dtype)
    pair.buffers[dtype] = (versions, buffer)  # as a whole, for calls of other threads
    return buffer
