"""A GPU that is played: what torch.cuda's clocks, queue and allocator would show, without one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aim_fast import device_clock


class PlayedGPU:
    """Work runs in the order in which it was queued, and not before; a kernel takes its milliseconds.

    The queue has room for 1024; where it is full, the host waits. `now` and `host` are the two clocks, in milliseconds.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.queue: list[tuple[Any, float]] = []
        self.now = self.host = 0.0
        self.clock = device_clock.CLOCK
        self.allocated, self.peak = 100, 100

    def put(self, item: Any) -> None:
        if len(self.queue) == 1024:
            self.work()
            self.host = max(self.host, self.now)
        self.queue.append((item, self.host))

    def launch(self, ms: float, host: float = 0.0) -> None:
        self.host += host
        self.put(ms)

    def work(self) -> None:
        item, queued = self.queue.pop(0)
        self.now = max(self.now, queued)
        if isinstance(item, PlayedEvent):
            item.at = self.now
        else:
            self.now += item

    def synchronize(self) -> None:
        while self.queue:
            self.work()
        self.host = max(self.host, self.now)
        self.log.append("synchronize")

    def sleep(self, cycles: int) -> None:
        assert isinstance(cycles, int)
        self.log.append("sleep")
        self.put(cycles / self.clock * 1e3)

    def allocate(self, size: int) -> None:
        self.allocated += size
        self.peak = max(self.peak, self.allocated)

    def reset(self) -> None:
        self.peak = self.allocated


class PlayedEvent:
    def __init__(self, gpu: PlayedGPU, timed: bool) -> None:
        assert timed
        self.gpu = gpu
        self.at: float | None = None

    def record(self) -> None:
        self.gpu.put(self)

    def elapsed_time(self, end: PlayedEvent) -> float:
        assert self.at is not None
        assert end.at is not None
        return end.at - self.at


def play(monkeypatch: pytest.MonkeyPatch) -> PlayedGPU:
    """One in place of torch.cuda's."""
    played = PlayedGPU()
    properties = SimpleNamespace(
        name="Played", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30, L2_cache_size=50 << 20
    )
    functions = {
        "Event": lambda enable_timing: PlayedEvent(played, enable_timing),
        "synchronize": played.synchronize,
        "_sleep": played.sleep,
        "memory_allocated": lambda: played.allocated,
        "max_memory_allocated": lambda: played.peak,
        "reset_peak_memory_stats": played.reset,
        "empty_cache": lambda: None,
        "mem_get_info": lambda: (70 << 30, 80 << 30),
        "current_device": lambda: 0,
        "get_device_properties": lambda device: properties,
    }
    for name, function in functions.items():
        assert hasattr(torch.cuda, name), f"torch has no torch.cuda.{name} any more"
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(device_clock, "perf_counter", lambda: played.host / 1e3)
    return played
