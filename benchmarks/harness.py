"""Workloads, their inputs, the rivals, and the interleaved timing of one call."""

from __future__ import annotations

import contextlib
import fnmatch
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import aim_fast
from aim_fast.testing import make_inputs
from cases import CASES, Case

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PASSES = ("forward", "backward", "train")
MIN_ROUNDS, MAX_ROUNDS, MAX_BURST = 5, 200, 100
BURST_SECONDS = 2e-3


@dataclass(frozen=True)
class Workload:
    """A case in one dtype. `amp`: the tensors are fp32 and the call runs under autocast to that dtype."""

    case: Case
    dtype: str
    amp: bool = False

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
        return torch.autocast("cpu", self.compute_dtype) if self.amp else contextlib.nullcontext()


def select(patterns: Sequence[str], dtypes: Sequence[str]) -> list[Workload]:
    """The workloads whose case matches a name or glob, in the order of the table.

    Args:
        patterns: names or globs of cases.
        dtypes: of "fp32", "bf16", "fp16"; the modes "half" and "amp" run in each half dtype among them.

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
        Workload(case, dtype, amp=mode == "amp")
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
    def differentiable(self) -> dict[str, Tensor]:
        """The tensors that get a gradient, by name."""
        names = ("x", "w1", "b1", "w2", "b2", "residual")
        return {name: t for name, t in zip(names, self.arguments, strict=True) if t is not None and t.requires_grad}


def build(workload: Workload) -> Inputs:
    """Inputs with non-zero weights of real sizes, the same at every call."""
    case, dtype = workload.case, workload.tensor_dtype
    shape = (64, case.M // 64, case.D) if case.strided else (case.M, case.D)
    made = {name: t for name, t in make_inputs(shape, case.H, dtype).items() if t is not None}
    x = made.pop("x")
    if case.strided:
        x = x.transpose(0, 1)
    generator = torch.Generator().manual_seed(1)
    residual = None
    if case.residual:
        residual = torch.randn(x.shape, generator=generator).to(dtype).requires_grad_(case.x_grad)
    dy = torch.randn(x.shape, generator=generator).to(workload.output_dtype)
    weights = {name: t.requires_grad_() for name, t in made.items()}
    return Inputs(x=x.requires_grad_(case.x_grad), residual=residual, dy=dy, **weights)


Rival = Callable[..., Tensor]  # (x, w1, b1, w2, b2, residual) -> y


def fused(case: Case) -> Rival:
    """This package's adapter."""

    def call(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, residual: Tensor | None) -> Tensor:
        return aim_fast.adapter(
            x, w1, b1, w2, b2, activation=case.activation, skip=case.skip, scale=case.scale, residual=residual
        )

    return call


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


def compiled(case: Case) -> Rival:
    """The eager modules under torch.compile, default mode, fixed shapes; compiles when first called."""
    torch.compiler.reset()
    return torch.compile(eager(case), dynamic=False)


RIVALS: dict[str, Callable[[Case], Rival]] = {"eager": eager, "compile": compiled}


@dataclass(frozen=True)
class Step:
    """One call of one pass: `prepare` is not timed, `run` is and takes what prepare gave."""

    prepare: Callable[[], Any]
    run: Callable[[Any], Any]


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


def call_seconds(one: Step) -> float:
    """Wall time of one run; what it returns is freed outside the time."""
    state = one.prepare()
    start = time.perf_counter()
    result = one.run(state)
    elapsed = time.perf_counter() - start
    del result
    return elapsed


def interleave(steps: dict[str, Step], seconds: float) -> dict[str, list[float]]:
    """Seconds per call of each rival, one figure a round: A B C, C B A, A B C, ...

    A short call is repeated until its turn lasts about 2 ms, and the turn gives the median. Rounds go on until
    `seconds` are spent, at least MIN_ROUNDS and at most MAX_ROUNDS.
    """
    for one in steps.values():
        call_seconds(one)
    fastest = min(call_seconds(one) for one in steps.values())
    burst = max(1, min(MAX_BURST, round(BURST_SECONDS / fastest)))
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    deadline = time.perf_counter() + seconds
    for done in range(MAX_ROUNDS):
        if done >= MIN_ROUNDS and time.perf_counter() > deadline:
            break
        for name in names:
            times[name].append(statistics.median(call_seconds(steps[name]) for _ in range(burst)))
        names.reverse()
    return times
