"""`python -m aim_fast tune`: measures the kernels on this machine's GPU and leaves a table for `aim_fast.tuning`.

For every shape, of the CUDA kernels and of Triton's: forwards with the most promising plans of the forward kernel, then
train steps with those of the backward kernels; and eager beside them. The fastest plans and their times are kept, in
place of what an earlier run left. Times are the device's, of calls that wait for no host and find nothing in L2. Takes
less for some `--backends`, `--loads` or `--shapes`, of which alone the table then speaks, or with `--rules`, by which
each family of the CUDA kernels picks its plans itself.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache, lru_cache, partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

import aim_fast
from aim_fast import device_clock, nvidia, triton_device, tuning
from aim_fast.kernels import tiling
from aim_fast.kernels.tiling import Gpu
from aim_fast.routing import BACKENDS
from aim_fast.testing import make_inputs

# D, H of the code bases in benchmarks/cases.py, and numbers of rows twice `tuning.REACH` apart.
SHAPES = ((768, 192), (1024, 256), (1280, 320), (768, 64), (128, 32), (256, 64), (512, 128), (1024, 512))
_ROWS = (1, 4, 16, 64, 200, 800, 1600, 3200, 12800, 51200)
# By load class. In fp32, on many rows, products run at the rate that eager's reach.
ROWS = {"half": _ROWS, "amp": _ROWS, "ieee": _ROWS[:-1]}
CANDIDATES = 4  # plans of a Triton kernel that are tried
# A plan takes the place of one before it only if it is faster by more than this share: less is noise.
NOISE = 0.02
# The CUDA kernels' 224 shapes took 59 s on an H200 by their rules, five measurements each; 126 took 70 s with a dozen.
# Most of that are the device's waits for a host that needs 100 us for a forward and 500 for a train step.
_BURSTS, _CALLS = 3, 7
_FLUSHES = 2  # how often L2 is passed over before a call


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
    """The fastest plans of a backend, one kernel after the other, and their two times.

    Among plans within the noise the first holds: the most promising one, not the luckiest.
    """
    best = {kernel: plans[0] for kernel, plans in options.items()}
    times = measure(shape, backend, best)
    for turn, (kernel, plans) in enumerate(options.items()):
        step = 0 if turn == 0 else 1  # the first is the forward kernel
        for plan in plans[1:]:
            tried = measure(shape, backend, best | {kernel: plan})
            if tried[step] < (1 - NOISE) * times[step]:
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


def options_on_gpu(shape: Shape, backend: str, each_plan: bool = True) -> dict[str, Sequence[Any]]:
    """The plans that are there for the current device."""
    index = torch.cuda.current_device()
    if not next(row.available for row in aim_fast.backends() if row.name == backend):
        return {}
    if backend == "triton":
        gpu = triton_device.gpu(index)
        return {kernel: tiling.plans(gpu, kernel, *shape, 2)[:CANDIDATES] for kernel in tiling.KERNELS}
    dtype = dtype_of(shape)
    there = {name: nvidia.cuda_plans(index, shape.D, shape.H, dtype, name == "backward") for name in tuning.DIRECTIONS}
    return {name: cuda_options(plans, each_plan) for name, plans in there.items()}


def cuda_options(plans: Sequence[str], each_plan: bool = True) -> list[str]:
    """What the best family's rule chooses, by M; if each_plan its plans; what each other family's rule chooses."""
    best, *others = dict.fromkeys(plan.split("/")[0] for plan in plans) or [""]
    return ["", *(plan for plan in plans if each_plan and plan.startswith(best)), *others] if best else []


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
    """Device seconds of a forward and of a train step on the current device."""
    use_plans(triton_device.gpu(torch.cuda.current_device()), shape, backend, plans)
    tensors, leaves, dy = _inputs(shape)

    def adapter() -> Tensor:
        # Entered for each call: a longer one would keep the casts of the leaves, x among them, from call to call.
        with torch.autocast("cuda", dtype=torch.bfloat16) if shape.load == "amp" else nullcontext():
            return aim_fast.adapter(**tensors, skip=True)

    def forward() -> Tensor:
        with torch.no_grad():
            return adapter()

    def step() -> Sequence[Tensor]:
        return torch.autograd.grad(adapter(), leaves, dy)

    with aim_fast.use_backend(backend):
        return device_seconds(forward), device_seconds(step)


@lru_cache(maxsize=1)
def _inputs(shape: Shape) -> tuple[dict[str, Any], list[Tensor], Tensor]:
    """The operands of a shape, those that get gradients, and dy; kept while its plans are compared."""
    narrow = torch.bfloat16 if shape.load == "half" else torch.float32
    tensors: dict[str, Any] = make_inputs((shape.M, shape.D), shape.H, narrow, requires_grad=True, device="cuda")
    return tensors, [t for t in tensors.values() if t is not None], torch.randn_like(tensors["x"])


def device_seconds(call: Callable[[], object]) -> float:
    """What a call takes of the device alone: the median of several bursts' medians.

    It finds nothing in L2, whose size is read _FLUSHES times before each call. The benchmarks use sets of inputs in
    turn for that: for few rows hundreds, which take longer to make than to measure. Read, not written: lines to be
    written back would take the call's bandwidth.
    """
    call()  # compiles, or loads the kernels
    one = device_clock.Step(_flush().sum, lambda _: call())
    wait, bursts = device_clock.FIRST, []
    for _ in range(_BURSTS):
        times, wait = device_clock.queued_ahead([one] * _CALLS, wait)
        bursts.append(median(device for device, _ in times))
    return median(bursts)


@cache
def _flush() -> Tensor:
    size = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return torch.zeros(_FLUSHES * size // 4, device="cuda")


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
    parser.add_argument("--rules", action="store_true", help="CUDA kernels by their rules, not plan by plan")
    options = parser.parse_args(arguments)
    asked = [row for row in aim_fast.backends() if row.name in options.backends]
    none = "; ".join(f"{row.name}: {row.reason}" for row in asked) if not any(row.available for row in asked) else ""
    if none or not torch.cuda.is_available():
        print(f"nothing to tune: {none or 'torch sees no CUDA device; see nvidia-smi'}", file=sys.stderr)
        return 1
    gpu = triton_device.gpu(torch.cuda.current_device())
    shapes = [Shape(load, M, *pair) for load in options.loads for pair in options.shapes for M in ROWS[load]]
    there = partial(options_on_gpu, each_plan=not options.rules)
    rows = search_all(shapes, only(options.backends, there), on_gpu)
    if not rows:
        print(f"nothing to tune: {' and '.join(options.backends)} take none of these shapes", file=sys.stderr)
        return 1
    about = {"aim_fast": aim_fast.__version__, "torch": torch.__version__, "date": datetime.date.today().isoformat()}
    about["cuda"] = nvidia.cuda_archs()
    file = tuning.save(gpu, rows, about)
    print(f"written to {file}")
    return 0
