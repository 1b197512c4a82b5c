"""Workloads, their inputs, the rivals, and the interleaved timing of one call."""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import aim_fast
from aim_fast.device_clock import Step
from aim_fast.routing import BACKENDS
from aim_fast.testing import make_inputs
from cases import CASES, Case
from devices import DEVICES

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PASSES = ("forward", "backward", "train")
MIN_ROUNDS, MAX_ROUNDS, MAX_BURST = 5, 200, 100
FLUSHES = 2  # how often a cache is passed over before the same inputs come again
BURST_SECONDS = 2e-3
PATIENCE = 5.0  # seconds beyond those asked for, after which two rounds have to do


@dataclass(frozen=True)
class Workload:
    """A case in one dtype on a device. `amp`: the tensors are fp32 and the call runs under autocast to that dtype."""

    case: Case
    dtype: str
    amp: bool = False
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.case.name} {self.dtype}{' amp' if self.amp else ''}"

    @property
    def compute_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def tensor_dtype(self) -> torch.dtype:
        return torch.float32 if self.amp else self.compute_dtype

    @property
    def output_dtype(self) -> torch.dtype:
        return self.tensor_dtype if self.case.skip or self.case.residual else self.compute_dtype

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device, self.compute_dtype) if self.amp else contextlib.nullcontext()


def select(patterns: Sequence[str], dtypes: Sequence[str], device: str = "cpu") -> list[Workload]:
    """The workloads whose case matches a name or glob, in the order of the table.

    Args:
        patterns: names or globs of cases.
        dtypes: of "fp32", "bf16", "fp16"; the modes "half" and "amp" run in each half dtype among them.
        device: where they run, of `devices.DEVICES`.

    Raises:
        ValueError: a pattern that matches no case, an unknown dtype.
    """
    names = [case.name for case in CASES]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"--cases {pattern} matches no case; expected names or globs of {', '.join(names)}")
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise ValueError(f"--dtypes {dtype} is unknown; expected some of {', '.join(DTYPES)}")
    return [
        Workload(case, dtype, mode == "amp", device)
        for case in CASES
        if any(fnmatch.fnmatchcase(case.name, pattern) for pattern in patterns)
        for mode in case.modes
        for dtype in dtypes
        if (dtype == "fp32") == (mode == "fp32")
    ]


@dataclass(frozen=True)
class Inputs:
    """Tensors of one workload, in its tensor dtype."""

    x: Tensor  # [M, D], or [M / 64, 64, D] when strided
    w1: Tensor  # [H, D]
    b1: Tensor  # [H]
    w2: Tensor  # [D, H]
    b2: Tensor  # [D]
    residual: Tensor | None  # like x
    dy: Tensor  # like y

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        return self.x, self.w1, self.b1, self.w2, self.b2, self.residual

    @property
    def read_bytes(self) -> int:
        """What every pass reads of them at least: all but dy."""
        return sum(t.numel() * t.itemsize for t in self.arguments if t is not None)

    @property
    def differentiable(self) -> dict[str, Tensor]:
        """The tensors that get a gradient, by name."""
        names = ("x", "w1", "b1", "w2", "b2", "residual")
        return {name: t for name, t in zip(names, self.arguments, strict=True) if t is not None and t.requires_grad}


def build(workload: Workload) -> Inputs:
    """Inputs with non-zero weights of real sizes, drawn on the device, the same there at every call."""
    case, dtype, device = workload.case, workload.tensor_dtype, workload.device
    shape = (64, case.M // 64, case.D) if case.strided else (case.M, case.D)
    made = {name: t for name, t in make_inputs(shape, case.H, dtype, device=device).items() if t is not None}
    x = made.pop("x")
    if case.strided:
        x = x.transpose(0, 1)
    draw = partial(torch.randn, x.shape, generator=torch.Generator(device).manual_seed(1), device=device)
    residual = draw().to(dtype).requires_grad_(case.x_grad) if case.residual else None
    dy = draw().to(workload.output_dtype)
    weights = {name: t.requires_grad_() for name, t in made.items()}
    return Inputs(x=x.requires_grad_(case.x_grad), residual=residual, dy=dy, **weights)


def rotation(workload: Workload, inputs: Inputs) -> list[Inputs]:
    """`inputs` and as many copies that no call finds its tensors in the device's cache.

    The calls take the sets in turn. Before one comes again, all others have been read; together they are FLUSHES times
    the cache, not counting dy, y and the gradients, which only help: (sets - 1) * read_bytes >= FLUSHES * cache.
    """
    others = math.ceil(FLUSHES * DEVICES[workload.device].cache_bytes() / max(1, inputs.read_bytes))
    return [inputs, *(_copy(inputs) for _ in range(others))]


def _copy(inputs: Inputs) -> Inputs:
    tensors = {name: t for name, t in vars(inputs).items() if t is not None}
    return replace(inputs, **{n: t.detach().clone().requires_grad_(t.requires_grad) for n, t in tensors.items()})


Rival = Callable[..., Tensor]  # (x, w1, b1, w2, b2, residual) -> y


def fused(case: Case) -> Rival:
    """This package's adapter."""

    def call(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, residual: Tensor | None) -> Tensor:
        return aim_fast.adapter(
            x, w1, b1, w2, b2, activation=case.activation, skip=case.skip, scale=case.scale, residual=residual
        )

    return call


def forced(case: Case, backend: str) -> Rival:
    """The same, by name: its gradients too."""
    call = fused(case)

    def run(*tensors: Tensor) -> Tensor:
        with aim_fast.use_backend(backend):
            return call(*tensors)

    return run


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


def eager(case: Case) -> Rival:
    """The modules as their users write them."""
    act, scale, skip = _ACTIVATIONS[case.activation], case.scale, case.skip

    def call(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, residual: Tensor | None) -> Tensor:
        y = F.linear(act(F.linear(x, w1, b1)), w2, b2)
        if scale != 1.0:
            y = scale * y
        if skip:
            y = x + y
        return y if residual is None else residual + y

    return call


def compiled(case: Case, mode: str | None = None) -> Rival:
    """The eager modules under torch.compile, fixed shapes; compiles when first called."""
    torch.compiler.reset()
    return torch.compile(eager(case), dynamic=False, mode=mode)


# Without CUDA graphs, which would copy every input into a buffer of their own before each call.
AUTOTUNE = "max-autotune-no-cudagraphs"
RIVALS: dict[str, Callable[[Case], Rival]] = {
    "eager": eager,
    "compile": compiled,
    "autotune": partial(compiled, mode=AUTOTUNE),
    # Each of the package's own where "fused" is what the automatic choice makes of them.
    **{name: partial(forced, backend=name) for name in BACKENDS},
}


def step(workload: Workload, inputs: Inputs, rival: Rival, kind: str) -> Step:
    """forward: without grad. backward: the gradients alone, of a fresh forward. train: both, timed together."""
    wrt = tuple(inputs.differentiable.values())
    bound = partial(rival, *inputs.arguments)

    def forward(_: None = None) -> Tensor:
        with workload.autocast():
            return bound()

    def inference(_: None) -> Tensor:
        with torch.no_grad():
            return forward()

    def backward(y: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, wrt, inputs.dy)

    def nothing() -> None:
        return None

    return {
        "forward": Step(nothing, inference),
        "backward": Step(forward, backward),
        "train": Step(nothing, lambda _: backward(forward())),
    }[kind]


def interleave(steps: Mapping[str, Sequence[Step]], seconds: float, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds per call of each rival, one figure a round: A B C, C B A, A B C, ...

    A short call is repeated until its turn lasts about 2 ms, and the turn gives the median. Rounds go on until
    `seconds` are spent, at least MIN_ROUNDS and at most MAX_ROUNDS; where calls take seconds, so that these would last
    PATIENCE longer, at least two. The steps of a rival, one for each set of inputs,
    take turns; the next rival goes on with the set that comes next, so that none finds what another has just read.
    """
    clock = DEVICES[device].seconds
    first = {name: clock(sets[:1])[0] for name, sets in steps.items()}  # compiles, and may take seconds
    fastest = min(clock(steps[name][:1])[0] for name in steps if first[name] <= min(first.values()) + PATIENCE)
    burst = max(1, min(MAX_BURST, round(BURST_SECONDS / fastest)))
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    turns = itertools.cycle(range(len(steps[names[0]])))
    deadline = time.perf_counter() + seconds
    for done in range(MAX_ROUNDS):
        late = time.perf_counter() - deadline
        if (done >= MIN_ROUNDS and late > 0) or (done >= 2 and late > PATIENCE):
            break
        for name in names:
            times[name].append(statistics.median(clock([steps[name][next(turns)] for _ in range(burst)])))
        names.reverse()
    return times
