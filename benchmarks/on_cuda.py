"""An NVIDIA GPU as the benchmark sees it: events for time, the allocator's counters, its own copy and its own matmul.

Nothing here touches the device before it is called, so that a machine without one can import it.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from functools import cache
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from step import Step, best

# Most calls in a burst: the driver's queue takes about 1024 launches, and a host that finds it full waits as well.
_BURST = 16
# Seconds that the device is kept waiting: for each call at first, and before a burst at most.
_FIRST, _LONGEST = 3e-4, 0.25
_CLOCK = 2e9  # cycles a second, roughly: how long the device did wait is measured
_COPY_BYTES = 512 << 20  # ten times the last-level cache of an H100
_MATMUL_SIZE = 8192
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


_wait = _FIRST  # for each call, now: as long as the host needed lately, and some more


def seconds(steps: Sequence[Step]) -> list[float]:
    """Device time of each call between two events, without what the host needs to launch it."""
    return [device for device, _ in _ahead(steps)]


def host_seconds(steps: Sequence[Step]) -> list[float]:
    """Host time of each call, from call to return, while the device is busy with something else."""
    return [host for _, host in _ahead(steps)]


def _ahead(steps: Sequence[Step]) -> list[tuple[float, float]]:
    """Device and host time of each call, in bursts that were queued whole before the device began with them.

    A burst for which the device did not wait long enough is repeated with twice the wait. RuntimeError where that has
    no end, as for a call that itself waits for the device.
    """
    global _wait
    done: list[tuple[float, float]] = []
    while len(done) < len(steps):
        if _wait > _LONGEST:
            _wait = _FIRST
            limit = f"more than {_LONGEST * 1e3:.0f} ms"
            raise RuntimeError(f"the host takes {limit} to queue a call; expected one that does not await the device")
        calls = steps[len(done) :][: min(_BURST, int(_LONGEST / _wait))]
        times, host, waited = _burst(calls, _wait * len(calls))
        if host < waited:
            done += times
            # Rivals take turns: the slowest should still find its wait after a round of the others.
            _wait = max(0.99 * _wait, 1.25 * host / len(calls))
        else:
            _wait *= 2
    return done


def _burst(steps: Sequence[Step], wait: float) -> tuple[list[tuple[float, float]], float, float]:
    """Device and host time of each call, the host's time for all of them, and how long the device waited meanwhile."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(len(steps) + 1)]
    (asleep, awake), *around = events
    hosts = []
    torch.cuda.synchronize()
    begin = perf_counter()
    asleep.record()
    torch.cuda._sleep(int(wait * _CLOCK))
    awake.record()
    for one, (start, end) in zip(steps, around, strict=True):
        state = one.prepare()
        start.record()
        called = perf_counter()
        result = one.run(state)
        hosts.append(perf_counter() - called)
        end.record()
        del state, result
    host = perf_counter() - begin
    torch.cuda.synchronize()
    times = [start.elapsed_time(end) / 1e3 for start, end in around]
    return list(zip(times, hosts, strict=True)), host, asleep.elapsed_time(awake) / 1e3


def peak_bytes(one: Step) -> int:
    """Most memory held at once within one call, by the counters of torch's allocator."""
    state = one.prepare()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = one.run(state)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del result
    return peak


def free_bytes() -> int | None:
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def cache_bytes() -> int:
    """The size of the L2 cache."""
    return torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size


@cache
def _square(dtype: str) -> Tensor:
    return torch.randn(_MATMUL_SIZE, _MATMUL_SIZE, device="cuda").to(_DTYPES[dtype])


def rate(dtype: str, seconds_: float) -> tuple[float, str]:
    """GFLOP/s of a large matmul; in fp32 with TF32 only where torch's settings allow it, as for the adapter."""
    a = _square(dtype)
    out = torch.empty_like(a)
    shortest = best(seconds, lambda: torch.mm(a, a, out=out), seconds_)
    return 2 * _MATMUL_SIZE**3 / shortest / 1e9, f"matmul of {_MATMUL_SIZE}"


def copy_gbps(seconds_: float) -> float:
    source = torch.ones(_COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / best(seconds, lambda: target.copy_(source), seconds_) / 1e9


def facts() -> dict[str, Any]:
    """What a figure depends on: the GPU, and the versions that make its code."""
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": gpu.name,
        "capability": f"{gpu.major}.{gpu.minor}",
        "sms": gpu.multi_processor_count,
        "memory_gib": round(gpu.total_memory / 2**30, 1),
        "l2_mib": round(gpu.L2_cache_size / 2**20, 1),
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
