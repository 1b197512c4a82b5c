"""What autograd keeps between forward and backward: at most x and z, x alone with recompute, never more than eager."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import aim_fast
from cases import CASES, Case
from judge import DEVICE, Tensors, make_inputs

pytestmark = pytest.mark.usefixtures("fused")

M, HALF = 40, torch.bfloat16
WORKLOADS = [(case, mode) for case in CASES for mode in case.modes]


@contextmanager
def saved() -> Iterator[list[Tensor]]:
    """The tensors that autograd keeps within the block; held here, so that no address is used twice."""
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        yield kept


def kept_bytes(call: Callable[[], Tensor], given: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages that autograd keeps for a call, those of `given` left out."""
    with saved() as kept:
        y = call()
    assert y.requires_grad
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    left_out = {t.untyped_storage().data_ptr() for t in given}
    return sum(size for address, size in sizes.items() if address not in left_out)


def workload(case: Case, mode: str) -> tuple[Tensors, dict[str, Any], AbstractContextManager]:
    """A workload with M rows: its tensors, the options of the call, and autocast where it has it."""
    dtype = HALF if mode == "half" else torch.float32
    tensors = make_inputs((2, M // 2, case.D), case.H, dtype, requires_grad=True, device=DEVICE)
    x = tensors["x"]
    assert x is not None
    if case.strided:
        tensors["x"] = x = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    x.requires_grad_(case.x_grad)
    if case.residual:
        tensors["residual"] = torch.zeros_like(x, requires_grad=True)
    options = {"activation": case.activation, "skip": case.skip, "scale": case.scale}
    return tensors, options, torch.autocast(DEVICE, HALF) if mode == "amp" else nullcontext()


def users_code(x, w1, b1, w2, b2, *, activation, skip, scale, residual=None) -> Tensor:
    y = F.linear(getattr(F, activation)(F.linear(x, w1, b1)), w2, b2)
    y = y if scale == 1.0 else y * scale
    y = x + y if skip else y
    return y if residual is None else residual + y


@pytest.mark.parametrize(("case", "mode"), WORKLOADS, ids=[f"{case.name}-{mode}" for case, mode in WORKLOADS])
def test_workload(case: Case, mode: str) -> None:
    tensors, options, autocast = workload(case, mode)
    weights = [tensors[name] for name in ("w1", "b1", "w2", "b2")]
    with autocast:
        ours = kept_bytes(lambda: aim_fast.adapter(**tensors, **options), weights)
        again = kept_bytes(lambda: aim_fast.adapter(**tensors, **options, recompute=True), weights)
        eager = kept_bytes(lambda: users_code(**tensors, **options), weights)
    x_and_z = M * (case.D + case.H) * (4 if mode == "fp32" else 2)
    assert ours <= x_and_z
    assert again <= M * case.D * (4 if mode == "fp32" else 2)
    # ReLU's input is not kept by eager, its output serves for both: x and h there, x and z here.
    assert ours <= eager if case.activation == "relu" else ours < eager
    assert again < eager


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
def test_no_mixture_keeps_more_than_eager(autocast: torch.dtype) -> None:
    """Under autocast, for every dtype of x, weights and residual; eager's copies of the weights are not counted."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    options: dict[str, Any] = {"activation": "gelu", "skip": True, "scale": 0.5}
    for x, w, other in product(dtypes, dtypes, (None, *dtypes)):
        t = make_inputs((M, 64), 16, w, requires_grad=True, device=DEVICE)
        t["x"] = t["x"].detach().to(x).requires_grad_()
        if other is not None:
            t["residual"] = torch.zeros(M, 64, dtype=other, requires_grad=True, device=DEVICE)
        weights = [t[name] for name in ("w1", "b1", "w2", "b2")]
        with torch.autocast(DEVICE, autocast):
            ours, eager = (kept_bytes(partial(f, **t, **options), weights) for f in (aim_fast.adapter, users_code))
        copies = 2 * (2 * 64 * 16) if w is not autocast else 0
        assert ours < eager - copies, (x, w, other)


def test_eager_is_counted_right() -> None:
    """The count itself: eager keeps x, z and h of this call."""
    t = make_inputs((M, 64), 16, requires_grad=True, device=DEVICE)
    kept = kept_bytes(
        lambda: users_code(**t, activation="gelu", skip=True, scale=1.0),
        [t[name] for name in ("w1", "b1", "w2", "b2")],
    )
    assert kept == M * (64 + 16 + 16) * 4


# What is trained -> what may be kept besides the weights, with z and with recompute. Sizes are columns of M rows.
KEPT = {
    ("x",): (16, 64),
    ("w1",): (64 + 16, 64),
    ("b1",): (16, 64),
    ("w2",): (16, 64),
    ("b2",): (0, 0),
    ("residual",): (0, 0),
    ("b2", "residual"): (0, 0),
    ("x", "w2", "b1"): (16, 64),
    ("x", "w1", "b1", "w2", "b2", "residual"): (64 + 16, 64),
}


@pytest.mark.parametrize(("trained", "columns"), KEPT.items(), ids=["+".join(names) for names in KEPT])
def test_only_what_is_needed(trained: tuple[str, ...], columns: tuple[int, int]) -> None:
    tensors = make_inputs((M, 64), 16, device=DEVICE)
    tensors["residual"] = torch.zeros(M, 64, device=DEVICE)
    for name in trained:
        tensors[name].requires_grad_()
    weights = [tensors[name] for name in ("w1", "b1", "w2", "b2")]
    for recompute, most in zip((False, True), columns, strict=True):
        call = partial(aim_fast.adapter, **tensors, skip=True, recompute=recompute)
        assert kept_bytes(call, weights) <= M * most * 4


def test_row_scale_and_scale_are_small() -> None:
    """With them, no product of them with the rows is kept either."""
    tensors = make_inputs((M, 64), 16, requires_grad=True, device=DEVICE)
    tensors["scale"] = torch.ones(64, requires_grad=True, device=DEVICE)
    tensors["row_scale"] = torch.ones(M, device=DEVICE)
    given = [t for name, t in tensors.items() if name != "x"]
    kept = kept_bytes(lambda: aim_fast.adapter(**tensors, skip=True), given)
    assert kept <= M * (64 + 16) * 4


def test_y_is_not_kept() -> None:
    tensors = make_inputs((M, 64), 16, requires_grad=True, device=DEVICE)
    with saved() as kept:
        y = aim_fast.adapter(**tensors)
    assert kept
    assert y.data_ptr() not in {t.data_ptr() for t in kept}


def test_nothing_without_a_graph() -> None:
    """Frozen, or under no_grad: nothing is kept, and z is not even made."""
    tensors = make_inputs((M, 64), 16, device=DEVICE)
    with saved() as kept:
        aim_fast.adapter(**tensors)
        for t in tensors.values():
            t.requires_grad_()
        with torch.no_grad():
            aim_fast.adapter(**tensors)
    assert not kept


def test_freed_after_backward() -> None:
    """The graph lets go of x and z once they have served, as any PyTorch function does."""
    tensors = make_inputs((M, 64), 16, requires_grad=True, device=DEVICE)
    y = aim_fast.adapter(**tensors)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()
