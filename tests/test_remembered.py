"""Choices that are looked up: the same as those that are weighed, whatever they depend on, and dropped in time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import aim_fast
from aim_fast import dispatch, nvidia, remembered, triton_device, tuning
from aim_fast.dispatch import Backend, Call
from aim_fast.kernels import tiling
from test_cuda_dispatch import ROW, TRITON, plans

H100 = tiling.Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132)
OLD = tiling.Gpu("Tesla V100", (7, 0), 80)
FP32, BF16, FP64 = torch.float32, torch.bfloat16, torch.float64


def call_of(
    M: int = 50432,
    D: int = 768,
    H: int = 192,
    x: torch.dtype = BF16,
    w: torch.dtype = BF16,
    dtype: torch.dtype | None = None,
    skip: bool = False,
    train: bool | None = None,
    x_grad: bool = False,
    **more: Any,
) -> Call:
    """A call as in `test_triton_dispatch`. more: dtypes of tensors beside x and the weights, or of w2 alone."""

    def empty(*shape: int, dtype: torch.dtype = w) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    shapes = {"w2": (D, H), "b1": (H,), "b2": (D,), "scale": (D,), "row_scale": (M,), "residual": (M, D)}
    given = {name: empty(*shapes[name], dtype=of) for name, of in {"w2": w, **more}.items()}
    tensors = (
        empty(M, D, dtype=x).requires_grad_(x_grad),
        empty(H, D),
        *(given.get(name) for name in ("b1", "w2", "b2", "scale", "row_scale", "residual")),
    )
    return Call("cuda", tensors, dtype or torch.promote_types(x, w), skip, train)


def measured(forward: dict[str, float], train: dict[str, float]) -> tuning.Table:
    """A table of one measurement, for bf16 and 50432 rows."""
    found = {kernel: tiling.plans(H100, kernel, "half", 50432, 768, 192)[0] for kernel in tiling.KERNELS}
    cuda = dict.fromkeys(tuning.DIRECTIONS, "hopper/0")
    return tuning.Table({("half", 768, 192): [tuning.Row(50432, found, cuda, forward, train)]})


CUDA_FIRST = measured({"cuda": 1.0, "triton": 2.0, "eager": 3.0}, {"cuda": 3.0, "triton": 2.0, "eager": 1.0})
EAGER_FIRST = measured({"cuda": 2.0, "triton": 3.0, "eager": 1.0}, {"cuda": 1.0, "triton": 2.0, "eager": 3.0})


@pytest.fixture(autouse=True)
def _h100(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An H100 in the place of every device, where cuda was measured to win a forward and eager a train step."""
    monkeypatch.setenv("AIM_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path / "none")
    monkeypatch.setattr(tuning, "_tables", {})
    monkeypatch.setattr(remembered, "_chosen", {})
    for module in (triton_device, nvidia):
        monkeypatch.setattr(module, "gpu", lambda index: OLD if index == 1 else H100)
    monkeypatch.setattr(nvidia, "cuda_archs", lambda: "80,90a")
    monkeypatch.setattr(nvidia, "cuda_plans", plans)
    rows = [Backend(row.name, row.what, row.limits, "", row.advice) for row in (ROW, TRITON)]
    monkeypatch.setattr(dispatch, "backends", lambda: (*rows, aim_fast.backends()[-1]))
    triton_device.has_tiles.cache_clear()
    tuning.replace(H100, CUDA_FIRST)


def outcome(function: Callable[[Call], Any], call: Call) -> str:
    """The backend, or what it raises."""
    try:
        return getattr(found := function(call), "backend", found)
    except ValueError as error:
        return str(error)


def agree(call: Call) -> str:
    """What is chosen, weighed or looked up, and what `select` explains."""
    chosen = outcome(dispatch.choose, call)
    assert chosen == outcome(dispatch.choose, call) == outcome(dispatch.select, call)
    return chosen


def test_a_grid_of_calls() -> None:
    """In two rounds: in the second everything can be looked up."""
    calls = [
        call_of(M, H=H, x=x, w=w, skip=skip, train=train, x_grad=x_grad)
        for M, H, x, w in product((1, 7, 1576, 50432), (192, 196, 320), (FP32, BF16, FP64), (FP32, BF16))
        for skip, train, x_grad in product((False, True), (None, False, True), (False, True))
    ]
    seen = set()
    for _ in range(2):
        for name, grad in product(("auto", "cuda", "triton", "eager"), (torch.no_grad, torch.enable_grad)):
            with aim_fast.use_backend(name), grad():
                seen |= {agree(call) for call in calls}
    assert {"cuda", "triton", "eager"} < seen
    assert any("cannot take this call" in text for text in seen)


def test_it_is_weighed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weighed = []
    real = nvidia.advice

    def noting(*arguments: Any) -> tuple[bool, str]:
        weighed.append(1)
        return real(*arguments)

    monkeypatch.setattr(nvidia, "advice", noting)
    for _ in range(3):
        assert dispatch.choose(call_of(train=False)) == "cuda"
    assert len(weighed) == 1


def on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "get_device", lambda self: 1)


def with_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "allow_tf32", lambda: True)


# A call, another one that a backend could take or refuse for another reason, and what stands around that one.
PAIRS: dict[str, tuple[Call, Call, AbstractContextManager | Callable[[pytest.MonkeyPatch], None]]] = {
    "rows": (call_of(), call_of(M=7), nullcontext()),
    "width": (call_of(), call_of(D=1024), nullcontext()),
    "hidden": (call_of(), call_of(H=256), nullcontext()),
    "width_and_hidden": (call_of(D=192, H=768), call_of(M=50432 // 4, D=768, H=192), nullcontext()),
    "x": (call_of(), call_of(x=FP32, dtype=BF16), nullcontext()),
    "w1": (call_of(), call_of(w=FP32, dtype=BF16, w2=BF16), nullcontext()),
    "w2": (call_of(), call_of(w2=FP32), nullcontext()),
    "products": (call_of(x=FP32, w=FP32), call_of(x=FP32, w=FP32, dtype=BF16), nullcontext()),
    "skip": (call_of(), call_of(skip=True), nullcontext()),
    "train": (call_of(train=False), call_of(train=True), nullcontext()),
    "grad_mode": (call_of(), call_of(), torch.no_grad()),
    "grad_of_x": (call_of(), call_of(x_grad=True), nullcontext()),
    "forced": (call_of(), call_of(), aim_fast.use_backend("triton")),
    "device": (call_of(), call_of(), on_another_device),
    "tf32": (call_of(x=FP32, w=FP32), call_of(x=FP32, w=FP32), with_tf32),
    **{
        f"{name}_{of}".replace("torch.", ""): (call_of(), call_of(**dict[str, Any]({name: of})), nullcontext())
        for name in ("b1", "b2", "scale", "row_scale", "residual")
        for of in (BF16, FP64)
    },
}


@pytest.mark.parametrize(("one", "other", "around"), PAIRS.values(), ids=PAIRS)
def test_what_a_choice_depends_on(one: Call, other: Call, around: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each makes a call another one, whether or not the table of today decides otherwise for it."""
    agree(one)
    with monkeypatch.context() as patch, around if hasattr(around, "__enter__") else nullcontext(around(patch)):
        triton_device.has_tiles.cache_clear()
        agree(other)
        assert len(remembered._chosen) == 2
    triton_device.has_tiles.cache_clear()


def test_a_new_table_drops_what_the_old_one_decided() -> None:
    assert dispatch.choose(call_of(train=False)) == "cuda"
    tuning.replace(H100, EAGER_FIRST)
    assert agree(call_of(train=False)) == "eager"
    tuning.save(H100, CUDA_FIRST.rows, {})  # as `python -m aim_fast tune` ends
    assert agree(call_of(train=False)) == "cuda"


def test_transforms_and_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them is part of the key: what is looked up must not be seen there, nor what is chosen there later."""
    call = call_of(train=False)
    for _ in range(2):
        with torch.autograd.forward_ad.dual_level():
            assert agree(call) == "eager"
        assert torch.func.vmap(lambda t: t * (agree(call) == "eager"))(torch.ones(2)).sum() == 2
        with monkeypatch.context() as patch:
            patch.setattr(remembered, "in_onnx_export", lambda: True)
            assert agree(call) == "eager"
        assert agree(call) == "cuda"


def test_while_torch_compile_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes are symbols there, and the advice is another."""
    assert agree(call_of(M=7)) == "eager"
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        patch.setattr(remembered, "_chosen", None)  # to look would fail
        assert agree(call_of(M=7)) == "triton"
    assert agree(call_of(M=7)) == "eager"


@pytest.mark.parametrize("name", ["x", "w1"])
def test_symbols_are_not_looked_up(name: str) -> None:
    """A tensor of another class may have symbols for sizes, as a fake one; the choice is made all the same."""
    call = call_of(train=False)
    with FakeTensorMode():
        fake = call_of(train=False).tensors
    at = ("x", "w1").index(name)
    assert agree(call._replace(tensors=(*call.tensors[:at], fake[at], *call.tensors[at + 1 :]))) == "cuda"
    assert not remembered._chosen


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "MOST", 5)
    for M in (*range(1, 40), 50432):
        agree(call_of(M, train=False))
        assert 0 < len(remembered._chosen) <= 5


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with a backend of its own, while tables are replaced and choices dropped: no choice is another's."""
    monkeypatch.setattr(remembered, "MOST", 7)
    wrong: list[Any] = []
    stop = threading.Event()

    def choosing(name: str) -> None:
        with aim_fast.use_backend(name):
            while not stop.is_set():
                wrong.extend(M for M in (7, 1576, 50432) if dispatch.choose(call_of(M)) != name)

    threads = [threading.Thread(target=choosing, args=(name,)) for name in ("cuda", "triton", "eager")]
    for thread in threads:
        thread.start()
    for _ in range(50):
        for table, chosen in ((CUDA_FIRST, "cuda"), (EAGER_FIRST, "eager")):
            tuning.replace(H100, table)
            if dispatch.choose(call_of(train=False)) != chosen:
                wrong.append(chosen)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
