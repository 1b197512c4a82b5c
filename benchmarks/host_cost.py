"""Host time of a call on one row, where the arithmetic is nothing: fused beside eager, in turns.

    python benchmarks/host_cost.py
    python benchmarks/host_cost.py --device cuda --json out.json

A figure is the time from call to return. On a GPU the call has then been queued, not run; a burst is short enough that
the queue never fills, and is waited for outside the time. functional: `aim_fast.adapter` beside the same lines in
PyTorch; module: `aim_fast.Adapter` beside AIM's class as it is written. M = 1 in fp32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import aim_fast
import harness
import report
from cases import Case
from devices import DEVICES
from harness import Workload
from machine import provenance

SIZES = ((768, 192), (256, 64))
# no_grad: inference. graph: forward that keeps what a backward needs. train: forward and backward.
PASSES = ("no_grad", "graph", "train")
BURST, MIN_ROUNDS = 20, 5

Call = Callable[[], object]
# A call without arguments, and the tensors that its train step differentiates by.
Trained = tuple[Callable[[], Tensor], Sequence[Tensor]]


class Plain(nn.Module):
    """AIM's Adapter, with skip, in the calls that its forward makes."""

    def __init__(self, D: int) -> None:
        super().__init__()
        self.act = nn.GELU()
        self.D_fc1 = nn.Linear(D, D // 4)
        self.D_fc2 = nn.Linear(D // 4, D)

    def forward(self, x: Tensor) -> Tensor:
        xs = self.D_fc1(x)
        xs = self.act(xs)
        xs = self.D_fc2(xs)
        return x + xs


def functional(D: int, H: int, device: str) -> dict[str, Trained]:
    """{"fused": ..., "eager": ...} on the same tensors."""
    case = Case("one_row", 1, D, H, ("fp32",), True, "")
    inputs = harness.build(Workload(case, "fp32", device=device))
    functions = {"fused": harness.fused(case), "eager": harness.eager(case)}
    wrt = list(inputs.differentiable.values())
    return {name: (partial(function, *inputs.arguments), wrt) for name, function in functions.items()}


def module(D: int, H: int, device: str) -> dict[str, Trained]:
    """The same for the modules, with equal weights."""
    plain = Plain(D)
    fused = aim_fast.Adapter(D)
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(1, D, device=device, requires_grad=True)
    modules = {"fused": fused.to(device), "eager": plain.to(device)}
    return {name: (partial(m, x), [x, *m.parameters()]) for name, m in modules.items()}


FORMS = {"functional": functional, "module": module}


def of_pass(trained: Trained, kind: str) -> Call:
    """The call as one pass makes it."""
    call, wrt = trained
    dy = torch.ones_like(call())

    def no_grad() -> object:
        with torch.no_grad():
            return call()

    def train() -> object:
        return torch.autograd.grad(call(), wrt, dy)

    return {"no_grad": no_grad, "graph": call, "train": train}[kind]


def agree(forms: Mapping[str, Trained]) -> None:
    """ValueError unless both give the same to fp32's rounding: what is timed has to be the same work."""
    fused, eager = (forms[name][0]() for name in ("fused", "eager"))
    difference = (fused - eager).abs().max().item()
    if not difference <= 1e-4 * eager.abs().max().item():
        raise ValueError(f"host_cost: fused and eager differ by {difference:.3g}; nothing is timed")


def turns(calls: Mapping[str, Call], seconds: float, wait: Callable[[], object]) -> dict[str, list[float]]:
    """Seconds per call of each, a figure a round: the mean of BURST calls; `wait` comes before and after each burst."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for call in calls.values():
        call()
    deadline = time.perf_counter() + seconds
    while len(times[names[0]]) < MIN_ROUNDS or time.perf_counter() < deadline:
        for name in names:
            call = calls[name]
            wait()
            start = time.perf_counter()
            for _ in range(BURST):
                call()
            times[name].append((time.perf_counter() - start) / BURST)
        wait()
        names.reverse()
    return times


def measure(device: str, seconds: float) -> list[dict[str, Any]]:
    """A row per size, form and pass. Raises ValueError when fused and eager do not agree."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    rows = []
    for D, H in SIZES:
        for form, make in FORMS.items():
            pair = make(D, H, device)
            agree(pair)
            for kind in PASSES:
                timed = {name: of_pass(trained, kind) for name, trained in pair.items()}
                us = {name: 1e6 * statistics.median(t) for name, t in turns(timed, seconds, wait).items()}
                rows.append({"D": D, "H": H, "form": form, "pass": kind, "us": us})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="default: cpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="timing per row (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    options = parser.parse_args(argv)
    rows = measure(options.device, options.seconds)
    print(f"{report.heading(provenance(options.device))}; torch threads: {torch.get_num_threads()}\n")
    print(report.host_table(rows), end="")
    if options.json is not None:
        options.json.write_text(json.dumps({"host": rows, **provenance(options.device)}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
