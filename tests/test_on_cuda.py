"""The GPU's side of the benchmark against a GPU that is played: the order of calls, the units, what is counted."""

from __future__ import annotations

import pytest
import torch

import on_cuda
from aim_fast import device_clock
from aim_fast.device_clock import Step
from played_gpu import PlayedGPU, play


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> PlayedGPU:
    monkeypatch.setattr(on_cuda, "_wait", device_clock.FIRST)
    return play(monkeypatch)


def calls(gpu: PlayedGPU, number: int, ms: float = 0.05, host: float = 0.0, launches: int = 1) -> list[Step]:
    """Steps of so many launches, which together take the device `ms` and the host `host`."""

    def run(_: None) -> None:
        for _i in range(launches):
            gpu.launch(ms / launches, host / launches)

    return [Step(lambda: None, run)] * number


def test_only_the_call_is_between_its_events(gpu: PlayedGPU) -> None:
    steps = [Step(lambda: gpu.launch(7.0), lambda _, ms=ms: gpu.launch(ms)) for ms in (2.0, 3.0)]  # type: ignore[misc]
    assert on_cuda.seconds(steps) == pytest.approx([2e-3, 3e-3])
    assert gpu.log == ["synchronize", "sleep", "synchronize"]


def test_the_host_gets_a_head_start_for_each_call(gpu: PlayedGPU) -> None:
    on_cuda.seconds(calls(gpu, 4, ms=0.0))
    assert gpu.now == pytest.approx(4 * device_clock.FIRST * 1e3)


@pytest.mark.parametrize("number", [1, 5, 100])
@pytest.mark.parametrize("host", [0.1, 0.68, 1.2, 40.0])
def test_a_slow_host_does_not_show(gpu: PlayedGPU, number: int, host: float) -> None:
    """The wait grows until it suffices, and then stays: no further burst is in vain."""
    assert on_cuda.seconds(calls(gpu, number, host=host)) == pytest.approx([5e-5] * number)
    gpu.log.clear()
    for _ in range(3):
        assert on_cuda.seconds(calls(gpu, 1, host=host)) == pytest.approx([5e-5])
    assert gpu.log.count("sleep") == 3


def test_a_device_whose_clock_is_faster(gpu: PlayedGPU) -> None:
    """How long it waited counts, not how long it should have."""
    gpu.clock = 1.5 * device_clock.CLOCK
    assert on_cuda.seconds(calls(gpu, 4, host=0.25)) == pytest.approx([5e-5] * 4)
    assert gpu.log.count("sleep") == 2


def test_the_queue_never_fills(gpu: PlayedGPU) -> None:
    on_cuda.seconds(calls(gpu, 100, host=0.1, launches=60))
    assert gpu.log.count("sleep") == 7
    assert on_cuda.seconds(calls(gpu, 100, host=0.1, launches=200)) == pytest.approx([5e-5] * 100)


def test_the_wait_shrinks_again(gpu: PlayedGPU) -> None:
    on_cuda.seconds(calls(gpu, 16, host=1.2))
    on_cuda.seconds(calls(gpu, 1600, host=0.1) * 4)
    assert on_cuda._wait == pytest.approx(1.25e-4)


def test_a_first_call_that_compiles(gpu: PlayedGPU) -> None:
    """One call of half a minute does not lengthen the waits that follow by as much."""
    hosts = iter([30e3])
    step = Step(lambda: None, lambda _: gpu.launch(0.05, next(hosts, 0.1)))
    assert on_cuda.seconds([step]) == pytest.approx([5e-5])
    assert on_cuda._wait < 1e-3


def test_a_call_that_awaits_the_device(gpu: PlayedGPU) -> None:
    step = Step(lambda: gpu.launch(0.05), lambda _: gpu.synchronize())
    with pytest.raises(RuntimeError, match="takes more than 250 ms to queue a call; expected one that does not await"):
        on_cuda.seconds([step])
    assert on_cuda.seconds(calls(gpu, 1)) == pytest.approx([5e-5])


def test_host_time(gpu: PlayedGPU) -> None:
    """Of the call alone."""
    steps = [Step(lambda: gpu.launch(1.0, 0.5), lambda _, ms=ms: gpu.launch(7.0, ms)) for ms in (0.7, 0.2)]  # type: ignore[misc]
    assert on_cuda.host_seconds(steps) == pytest.approx([7e-4, 2e-4])


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
