"""Threads and processes: the same bits for any number of threads, calls at once, a fork after use."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import aim_fast
from judge import Tensors, evaluate, make_inputs

pytestmark = pytest.mark.usefixtures("fused")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def inputs(dtype: torch.dtype, M: int, D: int, H: int, seed: int = 0) -> tuple[Tensors, Tensor]:
    """Tensors with every gradient, and dy."""
    generator = torch.Generator().manual_seed(seed)
    tensors = make_inputs((M, D), H, dtype, seed=seed)
    tensors["residual"], dy = torch.randn(2, M, D, generator=generator).to(dtype).unbind()
    tensors["scale"] = torch.randn(D, generator=generator).to(dtype)
    tensors["row_scale"] = torch.rand(M, generator=generator)
    return tensors, dy


def assert_same_bits(got: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    different = [name for name, value in expected.items() if not torch.equal(got[name], value)]
    assert not different, f"{what}: other bits in {', '.join(different)}"


@DTYPES
@pytest.mark.parametrize(
    ("M", "D", "H"),
    [(7, 256, 64), (197, 96, 24), (251, 70, 192), (1499, 64, 16), (5003, 37, 5)],
    ids=["few_rows", "image", "panels", "prime", "ragged"],
)
def test_same_bits_for_any_number_of_threads(isa: str, dtype: torch.dtype, M: int, D: int, H: int) -> None:
    tensors, dy = inputs(dtype, M, D, H)
    options: dict[str, Any] = {"skip": True, "recompute": M in (251, 5003)}
    torch.set_num_threads(1)
    expected = evaluate(aim_fast.adapter, tensors, dy, **options)
    for threads in (2, 3, 4, 1):
        torch.set_num_threads(threads)
        assert_same_bits(evaluate(aim_fast.adapter, tensors, dy, **options), expected, f"{threads} threads")


@DTYPES
def test_same_bits_from_run_to_run(isa: str, dtype: torch.dtype) -> None:
    tensors, dy = inputs(dtype, 1009, 72, 20)
    expected = evaluate(aim_fast.adapter, tensors, dy, skip=True)
    for turn in range(10):
        assert_same_bits(evaluate(aim_fast.adapter, tensors, dy, skip=True), expected, f"run {turn}")


# Of different sizes, so that buffers kept between calls differ from thread to thread and grow.
JOBS = [
    (torch.float32, 301, 96, 24),
    (torch.bfloat16, 97, 256, 64),
    (torch.float16, 211, 37, 5),
    (torch.float32, 7, 512, 128),
]


def test_python_threads_at_once() -> None:
    """Four threads, each with its own calls, many rounds: as alone."""
    work = [inputs(*job, seed=i) for i, job in enumerate(JOBS)]
    alone = [evaluate(aim_fast.adapter, tensors, dy, skip=True) for tensors, dy in work]
    start = threading.Barrier(len(JOBS))

    def turn(worker: int) -> None:
        start.wait()
        with aim_fast.use_backend("cpu"):
            for i in range(25):
                job = (worker + i) % len(JOBS)
                tensors, dy = work[job]
                assert_same_bits(evaluate(aim_fast.adapter, tensors, dy, skip=True), alone[job], f"worker {worker}")

    with ThreadPoolExecutor(len(JOBS)) as pool:
        for done in [pool.submit(turn, worker) for worker in range(len(JOBS))]:
            done.result(timeout=120)


def test_threads_that_come_and_go() -> None:
    """What a thread keeps between calls goes with it; the next one starts afresh."""
    tensors, dy = inputs(torch.float32, 301, 96, 24)
    expected = evaluate(aim_fast.adapter, tensors, dy, skip=True)
    results: list[dict[str, Tensor]] = []
    for turn in range(20):
        thread = threading.Thread(target=lambda: results.append(evaluate(aim_fast.adapter, tensors, dy, skip=True)))
        thread.start()
        thread.join(60)
        assert_same_bits(results[turn], expected, "new thread")


def test_backward_in_another_thread() -> None:
    tensors, dy = inputs(torch.float32, 301, 96, 24)
    expected = evaluate(aim_fast.adapter, tensors, dy)
    for name in set(tensors) - {"row_scale"}:
        tensors[name].requires_grad_()
    y = aim_fast.adapter(**tensors)
    thread = threading.Thread(target=y.backward, args=(dy,))
    thread.start()
    thread.join(60)
    got = {"y": y} | {f"d{name}": t.grad for name, t in tensors.items()}
    assert_same_bits(got, expected, "other thread")


def in_child(function: Callable[[], bool], seconds: float = 60) -> int | None:
    """Exit status of a forked child that runs function: 0 if it was true; None if it hung."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            status = 0 if function() else 1
        finally:
            os._exit(status)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


@pytest.mark.parametrize("threads", [1, 2])
def test_fork_after_use(threads: int) -> None:
    """A child of a process that has used the kernel, as DataLoader makes them: one thread, right results, no hang.

    More threads in the child hang in OpenMP, with or without this package.
    """
    tensors, dy = inputs(torch.float32, 301, 96, 24)
    torch.set_num_threads(threads)
    expected = evaluate(aim_fast.adapter, tensors, dy, skip=True)

    def child() -> bool:
        torch.set_num_threads(1)
        results = evaluate(aim_fast.adapter, tensors, dy, skip=True)
        return all(torch.equal(results[name], value) for name, value in expected.items())

    assert in_child(child) == 0
    assert_same_bits(evaluate(aim_fast.adapter, tensors, dy, skip=True), expected, "parent after the fork")


class Features(Dataset):
    """Samples that an adapter makes in the worker."""

    def __init__(self) -> None:
        self.adapter = aim_fast.Adapter(64)
        self.samples = torch.randn(24, 9, 64, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.samples)

    @torch.no_grad()
    def __getitem__(self, i: int) -> Tensor:
        return self.adapter(self.samples[i])


@pytest.mark.skipif(sys.platform != "linux", reason="fork is the start method of Linux")
def test_data_loader_workers() -> None:
    dataset = Features()
    torch.set_num_threads(2)
    expected = torch.stack([dataset[i] for i in range(len(dataset))])
    loader = DataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context="fork", timeout=60)
    assert torch.equal(torch.cat(list(loader)), expected)
    loader = DataLoader(dataset, batch_size=4, num_workers=1, multiprocessing_context="spawn", timeout=60)
    assert torch.equal(torch.cat(list(loader)), expected)
