"""What came of a stage of gpu_check.py, and of one for each backend that has kernels for the device.

Nothing here imports torch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import limited
from gpu_machine import Machine, python
from limited import Done

LEAST_SECONDS = 5.0  # what has less is not begun
_KERNELS = (
    "import sys, json; sys.path.insert(0, 'tests'); import judge; print(json.dumps(judge.kernels_of(sys.argv[1])))"
)


@dataclass(frozen=True)
class Outcome:
    """status: passed, failed, left out, or out of time: then what was done until then was right."""

    status: str
    text: str
    seconds: float = 0.0
    results: Mapping[str, Any] = field(default_factory=dict)  # what the stage's benchmark wrote

    def after(self, seconds: float) -> Outcome:
        return replace(self, seconds=round(seconds, 1))

    def __str__(self) -> str:
        return f"{self.status} in {self.seconds:.0f} s; {self.text}"


def judged(done: Done, failed: bool, text: str) -> Outcome:
    """failed is what the output says; a process that ended badly by itself has failed too."""
    if failed or (done.status and not done.late):
        return Outcome("failed", text if failed else f"exit status {done.status}: {text}")
    return Outcome("out of time" if done.late or "for want of time" in text else "passed", text)


def forced(machine: Machine, backend: str) -> dict[str, str]:
    return {"AIM_FAST_TEST_DEVICE": machine.device, "AIM_FAST_TEST_BACKEND": backend}


@cache
def kernels(device: str) -> tuple[list[str], str]:
    """The backends with a kernel for the device; and where there is none, what the package says of itself."""
    done = python(["-c", _KERNELS, device], 60)
    if done.status:
        return [], done.last_line
    names = json.loads(done.last_line)
    return names, "" if names else " ".join(python(["-m", "aim_fast"], 60).output.split())


def each_kernel(
    machine: Machine, seconds: float, check: Callable[[str, float], Outcome], at_once: bool = False
) -> Outcome:
    """The outcomes of all backends that have a kernel for the device, as one.

    Each has the time that those before it left, so that one at least ends; or all of it, when they run at once.
    """
    start = time.monotonic()
    names, why = kernels(machine.device)
    if not names:
        status = "failed" if machine.gpu else "left out"
        return Outcome(status, f"no backend has a kernel for {machine.device} tensors: {why}")

    def within_rest(name: str) -> Outcome:
        left = seconds - (time.monotonic() - start)
        return check(name, left) if left >= LEAST_SECONDS else Outcome("out of time", "not begun")

    if at_once:
        return together(limited.at_once({name: partial(within_rest, name) for name in names}))
    return together({name: within_rest(name) for name in names})


def together(outcomes: Mapping[str, Outcome]) -> Outcome:
    """Several outcomes as one, which is the worst of them."""
    worst = min((o.status for o in outcomes.values()), key=("failed", "out of time", "left out", "passed").index)
    return Outcome(worst, "; ".join(f"{name}: {outcome.text}" for name, outcome in outcomes.items()))
