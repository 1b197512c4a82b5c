"""An NVIDIA GPU as the benchmark sees it: events for time, the allocator's counters, its own copy and its own matmul.

Nothing here touches the device before it is called, so that a machine without one can import it.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from aim_fast import device_clock
from aim_fast.device_clock import Step
from step import best

_COPY_BYTES = 512 << 20  # ten times the last-level cache of an H100
_MATMUL_SIZE = 8192
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


_wait = device_clock.FIRST  # for each call, now: as long as the host needed lately, and some more


def seconds(steps: Sequence[Step]) -> list[float]:
    """Device time of each call between two events, without what the host needs to launch it."""
    return [device for device, _ in _ahead(steps)]


def host_seconds(steps: Sequence[Step]) -> list[float]:
    """Host time of each call, from call to return, while the device is busy with something else."""
    return [host for _, host in _ahead(steps)]


def _ahead(steps: Sequence[Step]) -> list[tuple[float, float]]:
    global _wait
    times, _wait = device_clock.queued_ahead(steps, _wait)
    return times


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
