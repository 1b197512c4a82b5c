"""`python -m aim_fast tune`: measures the tiles on this machine's GPU and leaves a table for `aim_fast.tuning`.

For every shape: forwards with the most promising plans of the forward kernel, then train steps with those of the two
backward kernels, and eager beside them. The fastest plans and the four times are kept. Takes some minutes.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any, NamedTuple

import torch

import aim_fast
from aim_fast import triton_device, tuning
from aim_fast.kernels import tiling
from aim_fast.kernels.tiling import Gpu, Plan
from aim_fast.testing import make_inputs

# D, H of the code bases in benchmarks/cases.py, and numbers of rows twice `tuning.REACH` apart.
SHAPES = ((768, 192), (1024, 256), (1280, 320), (768, 64), (128, 32), (256, 64), (512, 128), (1024, 512))
ROWS = (200, 800, 3200, 12800, 51200)
CANDIDATES = 4  # plans of a kernel that are tried
_WARM_UP, _CALLS = 3, 20


class Shape(NamedTuple):
    """One call to measure."""

    load: str
    M: int
    D: int
    H: int


# (shape, plan of each kernel; None for eager) -> seconds of a forward and of a train step
Measure = Callable[[Shape, Mapping[str, Plan] | None], tuple[float, float]]


def search(gpu: Gpu, shape: Shape, measure: Measure) -> tuning.Row | None:
    """The fastest plans for a shape, one kernel after the other; None where the table has no tile."""
    options = {kernel: tiling.plans(gpu, kernel, *shape, 2)[:CANDIDATES] for kernel in tiling.KERNELS}
    if not all(options.values()):
        return None
    best = {kernel: plans[0] for kernel, plans in options.items()}
    times = measure(shape, best)
    for kernel, plans in options.items():
        step = 0 if kernel == "fwd" else 1
        for plan in plans[1:]:
            tried = measure(shape, best | {kernel: plan})
            if tried[step] < times[step]:
                best, times = best | {kernel: plan}, tried
    eager = measure(shape, None)
    return tuning.Row(shape.M, best, (times[0], eager[0]), (times[1], eager[1]))


def search_all(gpu: Gpu, shapes: Iterable[Shape], measure: Measure) -> tuning.Rows:
    """`search` over many shapes, with a line for each."""
    rows: tuning.Rows = {}
    for shape in shapes:
        row = search(gpu, shape, measure)
        if row is None:
            continue
        rows.setdefault((shape.load, shape.D, shape.H), []).append(row)
        (fused, eager), (fused_step, eager_step) = row.forward, row.train
        print(
            f"{shape.load:4} M {shape.M:6} D {shape.D:5} H {shape.H:4}: forward {fused * 1e6:8.1f} us, "
            f"eager {eager * 1e6:8.1f}; train step {fused_step * 1e6:8.1f} us, eager {eager_step * 1e6:8.1f}",
            flush=True,
        )
    return rows


def on_gpu(shape: Shape, plans: Mapping[str, Plan] | None) -> tuple[float, float]:
    """Medians over calls, by CUDA events, of the current device. L2 is as the calls leave it."""
    gpu = triton_device.gpu(torch.cuda.current_device())
    if plans is not None:
        zero = (1.0, 1.0)
        row = tuning.Row(shape.M, dict(plans), zero, zero)
        tuning.replace(gpu, tuning.Table({(load, shape.D, shape.H): [row] for load in tiling.LOADS}))
        triton_device.plan.cache_clear()
    narrow = torch.float32 if shape.load in ("ieee", "tf32", "amp") else torch.bfloat16
    tensors: dict[str, Any] = make_inputs((shape.M, shape.D), shape.H, narrow, requires_grad=True, device="cuda")
    amp = torch.autocast("cuda", dtype=torch.bfloat16) if shape.load == "amp" else nullcontext()
    leaves = [t for t in tensors.values() if t is not None]
    with aim_fast.use_backend("eager" if plans is None else "triton"), amp:
        dy = torch.ones_like(aim_fast.adapter(**tensors, skip=True))

        def forward() -> None:
            with torch.no_grad():
                aim_fast.adapter(**tensors, skip=True)

        def step() -> None:
            torch.autograd.grad(aim_fast.adapter(**tensors, skip=True), leaves, dy)

        return _median(forward), _median(step)


def _median(call: Callable[[], None]) -> float:
    for _ in range(_WARM_UP):
        call()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(_CALLS + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    times = sorted(a.elapsed_time(b) for a, b in itertools.pairwise(events))
    return times[len(times) // 2] / 1e3


def main(arguments: list[str]) -> int:
    """The command: 0 when a table was written, 1 with the reason when there is nothing to measure on."""
    parser = argparse.ArgumentParser(prog="python -m aim_fast tune", description=__doc__)
    parser.add_argument("--loads", nargs="+", choices=("half", "amp", "ieee"), default=("half", "amp", "ieee"))
    options = parser.parse_args(arguments)
    row = next(row for row in aim_fast.backends() if row.name == "triton")
    if row.reason or not torch.cuda.is_available():
        print(f"nothing to tune: {row.reason or 'torch sees no CUDA device; see nvidia-smi'}", file=sys.stderr)
        return 1
    gpu = triton_device.gpu(torch.cuda.current_device())
    shapes = [Shape(load, M, D, H) for load in options.loads for D, H in SHAPES for M in ROWS]
    rows = search_all(gpu, shapes, on_gpu)
    about = {"aim_fast": aim_fast.__version__, "torch": torch.__version__, "triton": version("triton")}
    about["date"] = datetime.date.today().isoformat()
    file = tuning.save(gpu, rows, about)
    print(f"written to {file}")
    return 0
