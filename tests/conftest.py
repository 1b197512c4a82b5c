"""Fixtures that the test files share."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from typing import Any

# Some tests run more threads than there are cores: those that wait must not spin. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from torch import Tensor

import aim_fast
from aim_fast import module, plan

MISSING = next(row.reason for row in aim_fast.backends() if row.name == "cpu")
# Every instruction set that this machine runs; one stand-in without the library, so that its tests fail by name.
ISAS = ("missing",) if MISSING else tuple(torch.ops.aim_fast.cpu_isas().split(","))
MALLOPT = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
M_PERTURB = -6


@pytest.fixture(scope="session")
def cpu_library() -> None:
    """The compiled library; its absence is a failure unless this machine could not have built it."""
    if not MISSING:
        return
    torch_version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if torch_version >= (2, 10) and any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.fail(MISSING)
    pytest.skip(MISSING)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, cpu_library: None) -> Iterator[str]:
    """Each instruction set of this machine in turn; calls that the CPU kernel does not take raise."""
    before = torch.ops.aim_fast.cpu_isa()
    torch.ops.aim_fast.cpu_set_isa(request.param)
    with aim_fast.use_backend("cpu"):
        yield request.param
    torch.ops.aim_fast.cpu_set_isa(before)


@pytest.fixture
def fused(cpu_library: None) -> Iterator[None]:
    """The CPU kernel, forced, with the machine's best instruction set."""
    with aim_fast.use_backend("cpu"):
        yield


@pytest.fixture
def poison() -> Iterator[None]:
    """Fresh memory is full of 3e38 (NaN in fp16), results and scratch alike: an element that nobody writes shows."""
    if MALLOPT is None:
        yield
        return
    MALLOPT(M_PERTURB, 0x80)  # malloc fills with the complement, 0x7f
    yield
    MALLOPT(M_PERTURB, 0)


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The keywords of every call of the operator that a module makes, one of ours or a patched one."""
    seen: list[dict[str, Any]] = []
    real = aim_fast.adapter

    def noted(*arguments: Tensor, **keywords: Any) -> Tensor:
        seen.append(keywords)
        return real(*arguments, **keywords)

    for room in (module, plan):
        monkeypatch.setattr(room, "adapter", noted)
    return seen
