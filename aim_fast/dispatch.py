"""THE table of backends and their limits: what runs a call, and why.

`AIM_FAST_BACKEND` (auto, eager or a backend's name) sets the default of the process, `use_backend` that of a block.
Adding a backend is one row of `_TABLE` and the file that registers its kernels.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from aim_fast import triton_launch
from aim_fast.reference import transformed
from aim_fast.triton_device import INTERPRETED

_HERE = Path(__file__).parent


class Call(NamedTuple):
    """What a limit may look at.

    device: its type. tensors: x, w1 and the others in the order of `adapter`, None where there is none. dtype: of the
    products.
    """

    device: str
    tensors: Sequence[Tensor | None]
    dtype: torch.dtype
    skip: bool


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


def library_path() -> Path:
    """The compiled library: `AIM_FAST_LIBRARY` if set, else the one that setup.py leaves in the package."""
    return Path(os.environ.get("AIM_FAST_LIBRARY") or _HERE / "libaim_fast.so")


def _load_library() -> str:
    """Load the compiled library. Returns why it is not there, with the remedy, or an empty string."""
    if INTERPRETED:
        return "Triton's interpreter has taken its place, since TRITON_INTERPRET=1 is set; unset it"
    path = library_path()
    if not path.exists():
        info = _HERE / "_build_info.json"
        reason = json.loads(info.read_text()).get("reason", "") if info.exists() else ""
        remedy = "install a C++ compiler and torch >= 2.10, then reinstall aim_fast"
        return f"the compiled library is not built: {reason or remedy}"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"the compiled library does not load with torch {torch.__version__} ({error}); reinstall aim_fast"
    return ""


def _load_triton() -> str:
    """Register the Triton kernels. Returns why they are not there, with the remedy, or an empty string."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install triton (torch's CUDA builds for Linux bring it)"
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        version = "3.2"  # a build under another name, which came with its torch
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < (3, 2):
        return f"Triton is {version}; pip install 'triton>=3.2'"
    if torch.version.cuda is None and not INTERPRETED:
        return f"torch {torch.__version__} is built without CUDA, which Triton needs; install a CUDA build of torch"
    triton_launch.register()
    return ""


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
    return "torch.onnx" not in sys.modules or not torch.onnx.is_in_onnx_export()


def _on_gpu(call: Call) -> bool:
    """A CUDA tensor; with Triton's interpreter a CPU tensor too, when it is asked for by name."""
    return call.device == "cuda" or (call.device == "cpu" and INTERPRETED and _forced.name == "triton")


def _has_tiles(call: Call) -> bool:
    # What is traced has no GPU to ask; the operator itself runs the composition where there is no tile.
    return torch.compiler.is_compiling() or triton_launch.takes(call.tensors, call.dtype)


def _triton_advice(call: Call) -> Advice:
    if torch.compiler.is_compiling():
        return Advice(True, "triton: chosen without weighing, since sizes are symbols under torch.compile")
    return Advice(*triton_launch.advice(call.tensors, call.dtype, call.skip))


# In order of preference; the last row takes every call. Filled at import: what torch.compile traces only reads it.
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
        _load_library(),
    ),
    Backend(
        "triton",
        "fused Triton kernels for NVIDIA GPUs",
        (
            Limit("triton: takes CUDA tensors only", _on_gpu),
            Limit("triton: takes float32, bfloat16 and float16 only", _half_or_float),
            Limit("triton: not under torch.func transforms or forward-mode AD", _no_transform),
            Limit("triton: not in an ONNX export", _no_onnx),
            Limit(
                "triton: has no tile for this; needs compute capability 8, 9, 10 or 12, and H up to 512",
                _has_tiles,
            ),
        ),
        _load_triton(),
        _triton_advice,
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
    forced = _forced.name
    for row in backends():
        if forced == "auto":
            if row.takes(call) and (row.advice is None or row.advice(call).choose):
                return row.name
        elif forced == row.name and row.takes(call):
            return forced
    return select(call).backend


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
