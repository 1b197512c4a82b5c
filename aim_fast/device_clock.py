"""The time of calls on a CUDA device without what the host needs to launch them: `tune` and the benchmarks go by it.

A call stands between two events. Before each burst of them the device is kept waiting until the host has queued them
all; a burst for which it did not wait long enough does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

# Most calls in a burst: the driver's queue takes about 1024 launches, and a host that finds it full waits as well.
BURST = 16
# Seconds that the device is kept waiting: for each call at first, and before a burst at most.
FIRST, LONGEST = 3e-4, 0.25
CLOCK = 2e9  # cycles a second, roughly: how long the device did wait is measured


@dataclass(frozen=True)
class Step:
    """One call of one pass: `prepare` is not timed, `run` is and takes what prepare gave."""

    prepare: Callable[[], Any]
    run: Callable[[Any], Any]


def queued_ahead(steps: Sequence[Step], wait: float) -> tuple[list[tuple[float, float]], float]:
    """Seconds of device and host for each call, in bursts that were queued whole before the device began with them.

    wait: for how many seconds a call the device is kept waiting at first. Returned too: as long as the host needed in
    the end, and some more. A burst that took the host longer is repeated with twice the wait. RuntimeError where that
    has no end, as for a call that itself waits for the device.
    """
    done: list[tuple[float, float]] = []
    while len(done) < len(steps):
        if wait > LONGEST:
            limit = f"more than {LONGEST * 1e3:.0f} ms"
            raise RuntimeError(f"the host takes {limit} to queue a call; expected one that does not await the device")
        calls = steps[len(done) :][: min(BURST, int(LONGEST / wait))]
        times, host, waited = _burst(calls, wait * len(calls))
        if host < waited:
            done += times
            # Rivals take turns: the slowest should still find its wait after a round of the others.
            wait = max(0.99 * wait, 1.25 * host / len(calls))
        else:
            wait *= 2
    return done, wait


def _burst(steps: Sequence[Step], wait: float) -> tuple[list[tuple[float, float]], float, float]:
    """Device and host time of each call, the host's time for all of them, and how long the device waited meanwhile."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(len(steps) + 1)]
    (asleep, awake), *around = events
    hosts = []
    torch.cuda.synchronize()
    begin = perf_counter()
    asleep.record()
    torch.cuda._sleep(int(wait * CLOCK))
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
