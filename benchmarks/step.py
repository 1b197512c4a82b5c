"""The best of several timed calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from aim_fast.device_clock import Step


def best(seconds_of: Callable[[Sequence[Step]], list[float]], call: Callable[[], object], seconds: float) -> float:
    """Shortest of the calls that fit in `seconds`, at least two, by a device's clock."""
    one = Step(lambda: None, lambda _: call())
    shortest, done, deadline = float("inf"), 0, time.perf_counter() + seconds
    while done < 2 or time.perf_counter() < deadline:
        shortest = min(shortest, *seconds_of([one, one]))
        done += 2
    return shortest
