"""THE table of backends and their limits: what runs a call, and why.

`AIM_FAST_BACKEND` (auto, eager or a backend's name) sets the default of the process, `use_backend` that of a block.
Adding a backend is one row of `_TABLE` and the file that registers its kernels.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from aim_fast import available, nvidia, remembered, routing
from aim_fast.reference import device_type, transformed
from aim_fast.triton_device import INTERPRETED


class Call(NamedTuple):
    """What a limit may look at.

    device: its type. tensors: x, w1 and the others in the order of `adapter`, None where there is none. dtype: of the
    products. train: whether a train step is weighed; None: where grad is enabled.
    """

    device: str
    tensors: Sequence[Tensor | None]
    dtype: torch.dtype
    skip: bool
    train: bool | None = None


@dataclass(frozen=True)
class Limit:
    """A condition that a backend sets, and the words for a call that breaks it."""

    text: str
    holds: Callable[[Call], bool]


class Advice(NamedTuple):
    """Whether a backend is worth choosing for a call that it can take, and the words for it."""

    choose: bool
    text: str


@dataclass(frozen=True)
class Backend:
    """A row of the table. `reason` says why it is not available, with the remedy, or is empty.

    advice: for a backend that can lose to the next ones; the automatic choice follows it, a forced one does not.
    """

    name: str
    what: str
    limits: tuple[Limit, ...]
    reason: str = ""
    advice: Callable[[Call], Advice] | None = None

    @property
    def available(self) -> bool:
        return not self.reason

    def takes(self, call: Call) -> bool:
        """Whether this backend can take the call."""
        if self.reason:
            return False
        for limit in self.limits:  # noqa: SIM110, a generator costs more than the limits do
            if not limit.holds(call):
                return False
        return True

    def refusals(self, call: Call) -> list[str]:
        """Why this backend cannot take the call; empty if it can."""
        if self.reason:
            return [self.reason]
        return [limit.text for limit in self.limits if not limit.holds(call)]


class Explanation(NamedTuple):
    """The backend that takes a call, and for each of the others why it does not."""

    backend: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([f"backend: {self.backend}", *(f"  {reason}" for reason in self.reasons)])


_HALF_OR_FLOAT = (torch.float32, torch.bfloat16, torch.float16)


def _half_or_float(call: Call) -> bool:
    for t in call.tensors:
        if t is not None and t.dtype not in _HALF_OR_FLOAT:
            return False
    return call.dtype in _HALF_OR_FLOAT


def _no_transform(call: Call) -> bool:
    return not transformed()


def _no_onnx(call: Call) -> bool:
    """No ONNX export is running: ONNX knows the parts of the composition, and nothing of the operator."""
    return not remembered.in_onnx_export()


def _on_gpu(name: str, stand_in: bool) -> Callable[[Call], bool]:
    """A CUDA tensor; with a stand-in for the GPU a CPU tensor too, when the backend is asked for by name."""

    def holds(call: Call) -> bool:
        return call.device == "cuda" or (call.device == "cpu" and stand_in and _forced.name == name)

    return holds


def _capable(call: Call) -> bool:
    x = call.tensors[0]
    if torch.compiler.is_compiling() or nvidia.is_emulated() or x is None:
        return True
    major, minor = nvidia.gpu(x.get_device()).capability
    return 10 * major + minor >= nvidia.lowest_arch()


# What is traced has no GPU to ask; the operator itself runs the composition where no kernel takes it.
def _has_plans(call: Call) -> bool:
    return torch.compiler.is_compiling() or nvidia.cuda_takes(call.tensors, call.dtype)


def _has_tiles(call: Call) -> bool:
    return torch.compiler.is_compiling() or nvidia.triton_takes(call.tensors, call.dtype)


def _weighed(backend: str, traced: Advice) -> Callable[[Call], Advice]:
    """The advice of measurements or an estimate; `traced` where sizes are symbols."""

    def advice(call: Call) -> Advice:
        if torch.compiler.is_compiling():
            return traced
        train = torch.is_grad_enabled() if call.train is None else call.train
        return Advice(*nvidia.advice(backend, call.tensors, call.dtype, call.skip, train))

    return advice


# In order of preference; the last row takes every call. Filled at import: what torch.compile traces only reads it.
_LIBRARY = available.load_library()
_TABLE = (
    Backend(
        "cpu",
        "fused C++ kernel for CPU tensors",
        (
            Limit("cpu: takes CPU tensors only", lambda call: call.device == "cpu"),
            Limit("cpu: takes float32, bfloat16 and float16 only", _half_or_float),
            Limit("cpu: not under torch.func transforms or forward-mode AD", _no_transform),
            Limit("cpu: not in an ONNX export", _no_onnx),
        ),
        _LIBRARY or available.without_cpu(),
    ),
    Backend(
        "cuda",
        "fused CUDA kernels for NVIDIA GPUs",
        (
            Limit("cuda: takes CUDA tensors only", _on_gpu("cuda", nvidia.is_emulated())),
            Limit("cuda: takes float32, bfloat16 and float16 only", _half_or_float),
            Limit("cuda: not under torch.func transforms or forward-mode AD", _no_transform),
            Limit("cuda: not in an ONNX export", _no_onnx),
            Limit("cuda: needs compute capability 8.0 or higher, and code for it in AIM_FAST_CUDA_ARCHS", _capable),
            Limit(
                "cuda: needs fewer than 2^31 rows, and D and H that are multiples of 8, H up to 256 (on compute "
                "capability 9.0 also 320, where D is a multiple of 64); for products in float32 multiples of 4",
                _has_plans,
            ),
        ),
        _LIBRARY or available.without_cuda(),
        _weighed("cuda", Advice(False, "cuda: not weighed under torch.compile; it is where the graph runs")),
    ),
    Backend(
        "triton",
        "fused Triton kernels for NVIDIA GPUs",
        (
            Limit("triton: takes CUDA tensors only", _on_gpu("triton", INTERPRETED)),
            Limit("triton: takes float32, bfloat16 and float16 only", _half_or_float),
            Limit("triton: not under torch.func transforms or forward-mode AD", _no_transform),
            Limit("triton: not in an ONNX export", _no_onnx),
            Limit(
                "triton: has no tile for this; needs compute capability 8, 9, 10 or 12, and H up to 512",
                _has_tiles,
            ),
        ),
        available.without_triton(),
        _weighed(
            "triton",
            Advice(True, "triton: chosen without weighing, since sizes are symbols under torch.compile"),
        ),
    ),
    Backend("eager", "the PyTorch composition, any device and dtype", ()),
)


def backends() -> tuple[Backend, ...]:
    """The rows of the table in order of preference; the last one, eager, takes every call."""
    return _TABLE


class _Forced(threading.local):
    name = os.environ.get("AIM_FAST_BACKEND") or "auto"


_forced = _Forced()


def _named(name: str) -> None:
    names = [row.name for row in backends()]
    if name not in ("auto", *names):
        raise ValueError(f"adapter: backend is {name!r}; expected one of auto, {', '.join(names)}")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force a backend ("cpu", "eager") or the automatic choice ("auto") in this thread within a `with` block.

    Raises ValueError for an unknown name. A call that the forced backend cannot take raises and names the limit.
    """
    _named(name)
    before, _forced.name = _forced.name, name
    try:
        yield
    finally:
        _forced.name = before


def choose(call: Call) -> str:
    """The name of the backend for a call. Raises as `select`, which also tells why but takes longer."""
    # What takes CPU tensors comes first in the table, and its limits take less time than a look-up.
    if call.device == "cuda":
        return remembered.choice(call, _forced.name, _decide)
    return _decide(call, _forced.name)


def _decide(call: Call, forced: str) -> str:
    for row in backends():
        if forced == "auto":
            if row.takes(call) and (row.advice is None or row.advice(call).choose):
                return row.name
        elif forced == row.name and row.takes(call):
            return forced
    return select(call).backend


def _choose_where_it_runs(tensors: Sequence[Tensor | None], dtype: torch.dtype, skip: bool, train: bool) -> str:
    """The backend for an operator that runs without `adapter`; the composition where the forced one cannot take it."""
    assert tensors[0] is not None
    try:
        return choose(Call(device_type(tensors[0]), tensors, dtype, skip, train))
    except ValueError:
        return "eager"


def select(call: Call) -> Explanation:
    """The backend for a call and why, and why not the others.

    Raises ValueError when the forced backend is unknown, not available or cannot take the call.
    """
    forced = _forced.name
    reasons: list[str] = []
    if forced != "auto":
        _named(forced)
    for row in backends():
        if forced not in ("auto", row.name):
            continue
        refusals = row.refusals(call)
        if not refusals:
            if forced != "auto":
                return Explanation(row.name, (*reasons, f"{row.name}: asked for by name"))
            if row.advice is None:
                return Explanation(row.name, (*reasons, f"{row.name}: {row.what}"))
            advice = row.advice(call)
            if advice.choose:
                return Explanation(row.name, (*reasons, advice.text))
            refusals = [advice.text]
        reasons += refusals
    raise ValueError(
        f"adapter: backend {forced!r} cannot take this call: {'; '.join(reasons)}; "
        'use the automatic choice: use_backend("auto") or AIM_FAST_BACKEND=auto'
    )


if any(row.available for row in _TABLE if row.name in routing.BACKENDS):
    _routed = routing.register("CPU" if INTERPRETED or nvidia.is_emulated() else "CUDA", _choose_where_it_runs)
