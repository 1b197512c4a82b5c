"""One call to be timed, and the best of several."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    """One call of one pass: `prepare` is not timed, `run` is and takes what prepare gave."""

    prepare: Callable[[], Any]
    run: Callable[[Any], Any]


def best(seconds_of: Callable[[Sequence[Step]], list[float]], call: Callable[[], object], seconds: float) -> float:
    """Shortest of the calls that fit in `seconds`, at least two, by a device's clock."""
    one = Step(lambda: None, lambda _: call())
    shortest, done, deadline = float("inf"), 0, time.perf_counter() + seconds
    while done < 2 or time.perf_counter() < deadline:
        shortest = min(shortest, *seconds_of([one, one]))
        done += 2
    return shortest
