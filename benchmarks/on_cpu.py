"""The CPU as the benchmark sees it: wall time, torch's record of its allocations, and the library's own FMA loop."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aim_fast.device_clock import Step
from step import best

_COPY_BYTES = 64 << 20  # source and target together are larger than most last-level caches
_MATMUL_SIZE = 1024

host_seconds = None


def seconds(steps: Sequence[Step]) -> list[float]:
    """Wall time of each call; what it returns is freed outside the time."""
    times = []
    for one in steps:
        state = one.prepare()
        start = time.perf_counter()
        result = one.run(state)
        times.append(time.perf_counter() - start)
        del state, result
    return times


def peak_bytes(one: Step) -> int:
    """Most memory held at once within one call.

    Replays the profiler's record of torch's CPU allocator, so it is exact and the same at every run; scratch that a
    library takes by itself is not in it (a few hundred KiB a thread for the fused kernel).
    """
    # The profiler's own log lines would break into the table; the library reads this when it first starts.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    state = one.prepare()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = one.run(state)
    del result
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        peak = max(peak, held)
    return peak


def free_bytes() -> int | None:
    """Memory that can be had without swapping, or None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def cache_bytes() -> int:
    """0: one set of inputs is used again and again, and a small one stays in the cache, as it does in a model."""
    return 0


def rate(dtype: str, seconds_: float) -> tuple[float, str]:
    """GFLOP/s of a register-only loop with the dtype's best instruction, on torch's present number of threads."""
    if hasattr(torch.ops.aim_fast, "cpu_peak"):
        name = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[dtype]
        return torch.ops.aim_fast.cpu_peak(name, torch.get_num_threads(), seconds_), "FMA loop"
    a = torch.ones(_MATMUL_SIZE, _MATMUL_SIZE)
    out = torch.empty_like(a)
    shortest = best(seconds, lambda: torch.mm(a, a, out=out), seconds_)
    return 2 * _MATMUL_SIZE**3 / shortest / 1e9, "fp32 matmul, for want of the compiled FMA loop"


@cache
def _buffers() -> tuple[Tensor, Tensor]:
    return torch.ones(_COPY_BYTES, dtype=torch.uint8), torch.zeros(_COPY_BYTES, dtype=torch.uint8)


def copy_gbps(seconds_: float) -> float:
    source, target = _buffers()
    return 2 * _COPY_BYTES / best(seconds, lambda: target.copy_(source), seconds_) / 1e9


def facts() -> dict[str, Any]:
    """Model and number of cores, and the instruction set that the fused kernel runs: None without the library."""
    isa = torch.ops.aim_fast.cpu_isa() if hasattr(torch.ops.aim_fast, "cpu_isa") else None
    return {"cpu": _model(), "cores": os.cpu_count(), "isa": isa}


def _model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
