"""The GPU's side of the benchmark against a GPU that is played: the order of calls, the units, what is counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import on_cuda
from step import Step


class PlayedGPU:
    """Work is queued in order and done at `synchronize`; a kernel takes the milliseconds that it was queued with."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.queue: list[Any] = []
        self.now = 0.0
        self.allocated, self.peak = 100, 100

    def launch(self, ms: float) -> None:
        self.queue.append(ms)

    def synchronize(self) -> None:
        for item in self.queue:
            if isinstance(item, PlayedEvent):
                item.at = self.now
            else:
                self.now += item
        self.queue.clear()
        self.log.append("synchronize")

    def sleep(self, cycles: int) -> None:
        assert isinstance(cycles, int)
        self.log.append("sleep")
        self.launch(cycles / on_cuda._CLOCK * 1e3)

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
        self.gpu.queue.append(self)

    def elapsed_time(self, end: PlayedEvent) -> float:
        assert self.at is not None
        assert end.at is not None
        return end.at - self.at


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> PlayedGPU:
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
    return played


def test_only_the_call_is_between_its_events(gpu: PlayedGPU) -> None:
    steps = [Step(lambda: gpu.launch(7.0), lambda _, ms=ms: gpu.launch(ms)) for ms in (2.0, 3.0)]  # type: ignore[misc]
    assert on_cuda.seconds(steps) == pytest.approx([2e-3, 3e-3])
    assert gpu.log == ["synchronize", "sleep", "synchronize"]


def test_the_host_gets_a_head_start_for_each_call(gpu: PlayedGPU) -> None:
    on_cuda.seconds([Step(lambda: None, lambda _: None)] * 4)
    assert gpu.now == pytest.approx(4 * on_cuda._HEAD_START * 1e3)


def test_run_takes_what_prepare_gave(gpu: PlayedGPU) -> None:
    taken: list[object] = []
    on_cuda.seconds([Step(lambda: "state", taken.append)])
    on_cuda.peak_bytes(Step(lambda: "state", taken.append))
    assert taken == ["state"] * 2


def test_peak_is_beyond_what_was_there(gpu: PlayedGPU) -> None:
    def run(_: None) -> None:
        gpu.allocate(50)
        gpu.allocate(-30)
        gpu.allocate(10)

    assert on_cuda.peak_bytes(Step(lambda: gpu.allocate(1000), run)) == 50
    assert on_cuda.free_bytes() == 70 << 30


def test_facts(gpu: PlayedGPU) -> None:
    facts = on_cuda.facts()
    assert (facts["gpu"], facts["capability"], facts["sms"]) == ("Played", "9.0", 132)
    assert (facts["memory_gib"], facts["l2_mib"]) == (80.0, 50.0)
    assert on_cuda.cache_bytes() == 50 << 20


def test_rate_and_copy(gpu: PlayedGPU, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 N^3 over the time of a matmul, bytes read and written over that of a copy."""
    monkeypatch.setattr(on_cuda, "best", lambda clock, call, seconds: 0.5)
    monkeypatch.setattr(on_cuda, "_MATMUL_SIZE", 64)
    monkeypatch.setattr(on_cuda, "_COPY_BYTES", 1000)
    for name in ("randn", "ones"):
        real = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *size, real=real, device, **more: real(*size, **more))
    on_cuda._square.cache_clear()
    gflops, source = on_cuda.rate("bf16", 0.1)
    on_cuda._square.cache_clear()
    assert gflops == 2 * 64**3 / 0.5 / 1e9
    assert source == "matmul of 64"
    assert on_cuda.copy_gbps(0.1) == 2 * 1000 / 0.5 / 1e9
