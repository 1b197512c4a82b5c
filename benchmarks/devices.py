"""What the benchmark needs of a device, one row each: its clock, its memory, its cache and its limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import on_cpu
import on_cuda
from aim_fast.device_clock import Step


@dataclass(frozen=True)
class Device:
    """The functions of one module, by the names that they have there.

    seconds: times of calls made one after the other. host_seconds: what they take of the host, None where that is the
    same. cache_bytes: what lies between a core and memory and has to be
    passed over before a tensor is cold again, 0 where that is left to chance. rate: GFLOP/s for a dtype's name in about
    so many seconds, and what measured it.
    """

    seconds: Callable[[Sequence[Step]], list[float]]
    host_seconds: Callable[[Sequence[Step]], list[float]] | None
    peak_bytes: Callable[[Step], int]
    free_bytes: Callable[[], int | None]
    cache_bytes: Callable[[], int]
    rate: Callable[[str, float], tuple[float, str]]
    copy_gbps: Callable[[float], float]
    facts: Callable[[], dict[str, Any]]
    rivals: tuple[str, ...]


def _row(module: Any, rivals: tuple[str, ...]) -> Device:
    names = ("seconds", "host_seconds", "peak_bytes", "free_bytes", "cache_bytes", "rate", "copy_gbps", "facts")
    return Device(**{name: getattr(module, name) for name in names}, rivals=rivals)


DEVICES = {
    "cpu": _row(on_cpu, ("eager", "compile")),
    "cuda": _row(on_cuda, ("eager", "compile", "autotune")),
}
