"""THE table of backends and their limits: what runs a call, and why.

`AIM_FAST_BACKEND` (auto, eager or a backend's name) sets the default of the process, `use_backend` that of a block.
Adding a backend is one row of `_TABLE` and the file that registers its kernels.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from aim_fast.reference import transformed

_HERE = Path(__file__).parent


class Call(NamedTuple):
    """What a limit may look at: the device, and the dtypes of the tensors and of the products."""

    device: str
    dtypes: set[torch.dtype]


@dataclass(frozen=True)
class Limit:
    """A condition that a backend sets, and the words for a call that breaks it."""

    text: str
    holds: Callable[[Call], bool]


@dataclass(frozen=True)
class Backend:
    """A row of the table. `reason` says why it is not available, with the remedy, or is empty."""

    name: str
    what: str
    limits: tuple[Limit, ...]
    reason: str = ""

    @property
    def available(self) -> bool:
        return not self.reason

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


_HALF_OR_FLOAT = {torch.float32, torch.bfloat16, torch.float16}


def _no_onnx(call: Call) -> bool:
    """No ONNX export is running: ONNX knows the parts of the composition, and nothing of the operator."""
    return "torch.onnx" not in sys.modules or not torch.onnx.is_in_onnx_export()


# In order of preference; the last row takes every call. Filled at import: what torch.compile traces only reads it.
_TABLE = (
    Backend(
        "cpu",
        "fused C++ kernel for CPU tensors",
        (
            Limit("cpu: takes CPU tensors only", lambda call: call.device == "cpu"),
            Limit("cpu: takes float32, bfloat16 and float16 only", lambda call: call.dtypes <= _HALF_OR_FLOAT),
            Limit("cpu: not under torch.func transforms or forward-mode AD", lambda call: not transformed()),
            Limit("cpu: not in an ONNX export", _no_onnx),
        ),
        _load_library(),
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


def select(device: str, tensors: Iterable[Tensor | None], dtype: torch.dtype) -> Explanation:
    """The backend for a call on this device with these tensors and this compute dtype.

    Raises ValueError when the forced backend is unknown, not available or cannot take the call.
    """
    dtypes = {t.dtype for t in tensors if t is not None}
    dtypes.add(dtype)
    call = Call(device, dtypes)
    forced = _forced.name
    reasons: list[str] = []
    if forced != "auto":
        _named(forced)
    for row in backends():
        if forced not in ("auto", row.name):
            continue
        refusals = row.refusals(call)
        if not refusals:
            why = "asked for by name" if forced != "auto" else row.what
            return Explanation(row.name, (*reasons, f"{row.name}: {why}"))
        reasons += refusals
    raise ValueError(
        f"adapter: backend {forced!r} cannot take this call: {'; '.join(reasons)}; "
        'use the automatic choice: use_backend("auto") or AIM_FAST_BACKEND=auto'
    )
