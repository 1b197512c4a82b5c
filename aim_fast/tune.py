"""`python -m aim_fast tune`: measures the kernels on this machine's GPU and leaves a table for `aim_fast.tuning`.

For every shape, of the CUDA kernels and of Triton's: forwards with the most promising plans of the forward kernel, then
train steps with those of the backward kernels; and eager beside them. The fastest plans and their times are kept, in
place of what an earlier run left. Takes some minutes; less for some `--backends`, `--loads` or `--shapes`, of which
alone the table then speaks.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch

import aim_fast
from aim_fast import nvidia, triton_device, tuning
from aim_fast.kernels import tiling
from aim_fast.kernels.tiling import Gpu
from aim_fast.routing import BACKENDS
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


# A backend's plan of each of its kernels; none of eager's.
Plans = Mapping[str, Any]
# (shape, backend, its plans) -> seconds of a forward and of a train step
Measure = Callable[[Shape, str, Plans], tuple[float, float]]
# (shape, backend) -> for each kernel in the order of their runs the plans to try, the most promising first
Options = Callable[[Shape, str], Mapping[str, Sequence[Any]]]


def fastest(shape: Shape, backend: str, options: Mapping[str, Sequence[Any]], measure: Measure) -> tuple[Any, Any]:
    """The fastest plans of a backend, one kernel after the other, and their two times."""
    best = {kernel: plans[0] for kernel, plans in options.items()}
    times = measure(shape, backend, best)
    for turn, (kernel, plans) in enumerate(options.items()):
        step = 0 if turn == 0 else 1  # the first is the forward kernel
        for plan in plans[1:]:
            tried = measure(shape, backend, best | {kernel: plan})
            if tried[step] < times[step]:
                best, times = best | {kernel: plan}, tried
    return best, times


def search(shape: Shape, options: Options, measure: Measure) -> tuning.Row | None:
    """What is fastest for a shape; None where no backend but eager takes it."""
    plans: dict[str, Plans] = {backend: {} for backend in BACKENDS}
    times = {}
    for backend in plans:
        found = options(shape, backend)
        if found and all(found.values()):
            plans[backend], times[backend] = fastest(shape, backend, found, measure)
    if not times:
        return None
    times["eager"] = measure(shape, "eager", {})
    forward, train = ({name: pair[i] for name, pair in times.items()} for i in (0, 1))
    return tuning.Row(shape.M, plans["triton"], plans["cuda"], forward, train)


def search_all(shapes: Iterable[Shape], options: Options, measure: Measure) -> tuning.Rows:
    """`search` over many shapes, with a line for each."""
    rows: tuning.Rows = {}
    for shape in shapes:
        row = search(shape, options, measure)
        if row is None:
            continue
        rows.setdefault((shape.load, shape.D, shape.H), []).append(row)
        forward, train = (
            ", ".join(f"{name} {seconds * 1e6:.1f} us" for name, seconds in times.items())
            for times in (row.forward, row.train)
        )
        print(
            f"{shape.load:4} M {shape.M:6} D {shape.D:5} H {shape.H:4}: forward {forward}; train step {train}",
            flush=True,
        )
    return rows


def dtype_of(shape: Shape) -> torch.dtype:
    """Of the products."""
    return torch.bfloat16 if shape.load in ("half", "amp") else torch.float32


def options_on_gpu(shape: Shape, backend: str) -> dict[str, Sequence[Any]]:
    """The plans that are there for the current device."""
    index = torch.cuda.current_device()
    if not next(row.available for row in aim_fast.backends() if row.name == backend):
        return {}
    if backend == "triton":
        gpu = triton_device.gpu(index)
        return {kernel: tiling.plans(gpu, kernel, *shape, 2)[:CANDIDATES] for kernel in tiling.KERNELS}
    if shape.load not in ("half", "amp"):
        return {}
    dtype = dtype_of(shape)
    return {name: nvidia.cuda_plans(index, shape.D, shape.H, dtype, name == "backward") for name in tuning.DIRECTIONS}


def only(backends: Sequence[str], options: Options) -> Options:
    """The options of these backends; the others have none."""
    return lambda shape, backend: options(shape, backend) if backend in backends else {}


def use_plans(gpu: Gpu, shape: Shape, backend: str, plans: Plans) -> None:
    """Let the calls of a shape in this process run by these plans."""
    triton, cuda = (plans if backend == name else {} for name in ("triton", "cuda"))
    row = tuning.Row(shape.M, triton, cuda, {}, {})
    tuning.replace(gpu, tuning.Table({(load, shape.D, shape.H): [row] for load in tiling.LOADS}))
    triton_device.plan.cache_clear()
    nvidia.cuda_plan.cache_clear()


def on_gpu(shape: Shape, backend: str, plans: Plans) -> tuple[float, float]:
    """Medians over calls on the current device, of a forward and of a train step. L2 is as the calls leave it."""
    use_plans(triton_device.gpu(torch.cuda.current_device()), shape, backend, plans)
    narrow = torch.bfloat16 if shape.load == "half" else torch.float32
    tensors: dict[str, Any] = make_inputs((shape.M, shape.D), shape.H, narrow, requires_grad=True, device="cuda")
    amp = torch.autocast("cuda", dtype=torch.bfloat16) if shape.load == "amp" else nullcontext()
    leaves = [t for t in tensors.values() if t is not None]
    with aim_fast.use_backend(backend), amp:
        dy = torch.ones_like(aim_fast.adapter(**tensors, skip=True))

        def forward() -> None:
            with torch.no_grad():
                aim_fast.adapter(**tensors, skip=True)

        def step() -> None:
            torch.autograd.grad(aim_fast.adapter(**tensors, skip=True), leaves, dy)

        return _median(forward), _median(step)


def _median(call: Callable[[], None]) -> float:
    """Seconds from the end of one call to that of the next, by CUDA events.

    What a program sees that does nothing else: the host's time where that is longer, as it is for few rows.
    """
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


def widths(text: str) -> tuple[int, int]:
    """D and H of "768x192"."""
    D, H = map(int, text.split("x"))
    if D < 1 or H < 1:
        raise ValueError
    return D, H


def main(arguments: list[str]) -> int:
    """The command: 0 when a table was written, 1 with the reason when there is nothing to measure on."""
    parser = argparse.ArgumentParser(prog="python -m aim_fast tune", description=__doc__)
    parser.add_argument("--loads", nargs="+", choices=("half", "amp", "ieee"), default=("half", "amp", "ieee"))
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS, help="beside eager; default: both")
    parser.add_argument("--shapes", nargs="+", type=widths, default=SHAPES, metavar="DxH", help="such as 768x192")
    options = parser.parse_args(arguments)
    asked = [row for row in aim_fast.backends() if row.name in options.backends]
    none = "; ".join(f"{row.name}: {row.reason}" for row in asked) if not any(row.available for row in asked) else ""
    if none or not torch.cuda.is_available():
        print(f"nothing to tune: {none or 'torch sees no CUDA device; see nvidia-smi'}", file=sys.stderr)
        return 1
    gpu = triton_device.gpu(torch.cuda.current_device())
    shapes = [Shape(load, M, D, H) for load in options.loads for D, H in options.shapes for M in ROWS]
    rows = search_all(shapes, only(options.backends, options_on_gpu), on_gpu)
    if not rows:
        print(f"nothing to tune: {' and '.join(options.backends)} take none of these shapes", file=sys.stderr)
        return 1
    about = {"aim_fast": aim_fast.__version__, "torch": torch.__version__, "date": datetime.date.today().isoformat()}
    about["cuda"] = nvidia.cuda_archs()
    file = tuning.save(gpu, rows, about)
    print(f"written to {file}")
    return 0
