"""Fixtures that the test files share."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

# Some tests run more threads than there are cores: those that wait must not spin. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from torch import Tensor

import aim_fast
import emulation
import interpreter
from aim_fast import module, plan
from judge import BACKEND, DEVICE, is_refusal

MISSING = next(row.reason for row in aim_fast.backends() if row.name == "cpu") if BACKEND == "cpu" else ""
# Of the CPU's kernel every instruction set that this machine runs; one stand-in without the library, so that its tests
# fail by name. Another backend is one variant.
_VARIANTS = torch.ops.aim_fast.cpu_isas() if BACKEND == "cpu" and not MISSING else "missing" if MISSING else BACKEND
ISAS = tuple(_VARIANTS.split(","))
MALLOPT = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
M_PERTURB = -6


@pytest.fixture(scope="session")
def cpu_library() -> None:
    """The compiled library, for a test of its kernels; its absence is a failure unless it cannot be built here."""
    if not MISSING:
        return
    torch_version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if torch_version >= (2, 10) and any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.fail(MISSING)
    pytest.skip(MISSING)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, cpu_library: None) -> Iterator[str]:
    """The backend under test, forced: the CPU's kernel with each instruction set of this machine in turn."""
    if BACKEND != "cpu":
        with aim_fast.use_backend(BACKEND):
            yield request.param
        return
    before = torch.ops.aim_fast.cpu_isa()
    torch.ops.aim_fast.cpu_set_isa(request.param)
    with aim_fast.use_backend("cpu"):
        yield request.param
    torch.ops.aim_fast.cpu_set_isa(before)


@pytest.fixture
def fused(cpu_library: None) -> Iterator[None]:
    """The backend under test, forced; the CPU's kernel with the machine's best instruction set."""
    with aim_fast.use_backend(BACKEND):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Any:
    """A case beyond the limits of the backend under test is skipped and names the limit; the CPU's kernel takes all."""
    try:
        return (yield)
    except ValueError as error:
        if BACKEND != "cpu" and is_refusal(error):
            pytest.skip(str(error))
        raise


@pytest.fixture
def poison() -> Iterator[None]:
    """Fresh memory is full of 3e38 (NaN in fp16), results and scratch alike: an element that nobody writes shows.

    On another device torch fills what it allocates with NaN.
    """
    if DEVICE != "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
        yield
        torch.use_deterministic_algorithms(False)
        return
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


@contextmanager
def process(environment: dict[str, str], start: Callable[[], None]) -> Iterator[Callable[..., Any]]:
    """Calls module-level functions in a process of its own, which begins with `start` in this environment."""
    pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=start)
    with pool, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        pool.submit(os.getpid).result()  # the process starts here, and takes the environment with it
        patch.undo()
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Callable[..., Any]]:
    """Calls a module-level function in a process of its own, where the Triton kernels run CPU tensors, interpreted.

    New memory is full of NaN there, results and workspace alike.
    """
    environment = {"TRITON_INTERPRET": "1", "AIM_FAST_BACKEND": "triton", "OMP_NUM_THREADS": "1"}
    with process(environment, interpreter.start) as call:
        yield call


@pytest.fixture(scope="session")
def emulator() -> None:
    """What compiles emulated kernels; its absence is a failure in CI, which installs it."""
    if reason := emulation.missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture(scope="session")
def emulated_library(emulator: None) -> None:
    """The library of the emulated CUDA kernels, up to date."""
    emulation.build()


@pytest.fixture(scope="session")
def emulated(emulated_library: None) -> Iterator[Callable[..., Any]]:
    """Calls a module-level function in a process of its own, where the CUDA kernels run CPU tensors, emulated.

    New memory is full of NaN there, results and workspace alike.
    """
    with process(emulation.ENVIRONMENT, emulation.start) as call:
        yield call
