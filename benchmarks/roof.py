"""The machine's limits, measured on the spot, and what a workload could take at best under them.

    time at the roof = max(FLOP / peak, bytes / copy bandwidth)

FLOP and bytes are the least that the pass needs: each tensor once, the hidden activation never, z once out and once in
when a backward follows. A small workload lives in the cache, not in memory, and may pass its roof.
"""

from __future__ import annotations

from dataclasses import dataclass

from devices import DEVICES
from harness import Workload

PROBE_SECONDS = 0.05


@dataclass(frozen=True)
class Work:
    """The least work of one call."""

    flops: float
    bytes: float


def work(workload: Workload, kind: str) -> Work:
    """FLOP (a multiply-add is two) and bytes of a forward, a backward, or both (train)."""
    case = workload.case
    product = 2.0 * case.M * case.D * case.H  # one of the matrix products
    width, hidden = case.M * case.D, case.M * case.H
    tensor, compute, out = (d.itemsize for d in (workload.tensor_dtype, workload.compute_dtype, workload.output_dtype))
    weights = (2 * case.D * case.H + case.H + case.D) * tensor
    x, y, z = width * tensor, width * out, hidden * compute
    residual = x if case.residual else 0
    forward = Work(2 * product, x + residual + y + weights)
    products, dx = (4, x) if case.x_grad else (3, 0)
    backward = Work(products * product, x + y + z + dx + 2 * weights)  # x, dy and z in, dx and the gradients out
    if kind == "forward":
        return forward
    if kind == "backward":
        return backward
    return Work(forward.flops + backward.flops, forward.bytes + z + backward.bytes)


@dataclass(frozen=True)
class Roof:
    """GFLOP/s of an FMA loop on registers or, on a GPU, of a large matmul; GB/s (read plus written) of a copy."""

    gflops: float
    gbps: float
    source: str

    def __str__(self) -> str:
        return f"{self.gflops:.0f} GFLOP/s ({self.source}), copy {self.gbps:.1f} GB/s"

    def seconds(self, least: Work) -> float:
        return max(least.flops / self.gflops, least.bytes / self.gbps) / 1e9


def measure(dtype: str, device: str = "cpu", seconds: float = PROBE_SECONDS) -> Roof:
    """The roof for "fp32", "bf16" or "fp16" with torch's present settings, in about `seconds`."""
    gflops, source = DEVICES[device].rate(dtype, seconds / 2)
    return Roof(gflops, DEVICES[device].copy_gbps(seconds / 2), source)


def better(before: Roof, after: Roof) -> Roof:
    """The higher figures of two: a share of the roof must not profit from a probe that something disturbed."""
    return Roof(max(before.gflops, after.gflops), max(before.gbps, after.gbps), before.source)
