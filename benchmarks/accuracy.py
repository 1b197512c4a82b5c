"""The check that comes before any timing: fused and eager against float64, at the full size of the workload.

y, dx and dresidual are compared on 512 rows of the real run (both ends and rows between, drawn once); the gradients of
the weights, which every row reaches, in full: their float64 truth is summed over chunks of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from aim_fast.reference import composition
from aim_fast.testing import budget
from harness import Inputs, Rival, Workload

SAMPLE_ROWS, END_ROWS, CHUNK_ROWS = 512, 64, 4096
_BY_ROW = ("y", "x", "residual")


@dataclass(frozen=True)
class Error:
    """Largest errors of one result against float64, relative to its largest magnitude there."""

    name: str
    error: float
    eager_error: float
    allowed: float
    ok: bool

    def __str__(self) -> str:
        return f"{self.name}: error {self.error:.2g} > allowed {self.allowed:.2g} (eager's {self.eager_error:.2g})"


def check(
    workload: Workload, inputs: Inputs, calls: Mapping[str, Rival], eager: Rival, kind: str
) -> dict[str, list[Error]]:
    """The errors of every result that a pass (forward, backward, train) gives, by the names of `calls`.

    Each is judged beside eager in the budget of aim_fast.testing; the truth is computed once.
    """
    rows = _sample(workload.case.M)
    gradients = kind != "forward"
    truth = _exact(workload, inputs, gradients, rows)
    beside = _results(workload, inputs, eager, gradients, rows)
    return {
        name: _errors(_results(workload, inputs, call, gradients, rows), beside, truth) for name, call in calls.items()
    }


def _errors(found: Mapping[str, Tensor], eager: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> list[Error]:
    errors = []
    for name, exact in truth.items():
        result = budget(found[name], eager[name], exact)
        unit = exact.abs().max().item() or 1.0
        label = name if name == "y" else f"d{name}"
        errors.append(Error(label, result.error / unit, result.eager_error / unit, result.allowed / unit, result.ok))
    return errors


def _sample(M: int) -> Tensor:
    """Indices of the rows that are compared, in ascending order."""
    if M <= SAMPLE_ROWS:
        return torch.arange(M)
    inner = torch.randperm(M - 2 * END_ROWS, generator=torch.Generator().manual_seed(2)) + END_ROWS
    inner = inner[: SAMPLE_ROWS - 2 * END_ROWS].sort().values
    return torch.cat([torch.arange(END_ROWS), inner, torch.arange(M - END_ROWS, M)])


def _flat(t: Tensor) -> Tensor:
    return t.detach().reshape(-1, t.shape[-1])


def _results(workload: Workload, inputs: Inputs, rival: Rival, gradients: bool, rows: Tensor) -> dict[str, Tensor]:
    with torch.set_grad_enabled(gradients), workload.autocast():
        y = rival(*inputs.arguments)
    found = {"y": y}
    if gradients:
        wanted = inputs.differentiable
        grads = torch.autograd.grad(y, tuple(wanted.values()), inputs.dy)
        found |= dict(zip(wanted, grads, strict=True))
    return {name: _flat(t)[rows] if name in _BY_ROW else t for name, t in found.items()}


def _exact(workload: Workload, inputs: Inputs, gradients: bool, rows: Tensor) -> dict[str, Tensor]:
    """The same results in float64; without gradients only the sampled rows are computed."""
    case, wanted = workload.case, inputs.differentiable if gradients else {}
    weights = {n: getattr(inputs, n).detach().double().requires_grad_(n in wanted) for n in ("w1", "b1", "w2", "b2")}
    by_row = {"x": _flat(inputs.x), "dy": _flat(inputs.dy)}
    if inputs.residual is not None:
        by_row["residual"] = _flat(inputs.residual)
    if not gradients:
        by_row = {name: t[rows] for name, t in by_row.items()}
        rows = torch.arange(len(rows))
    pieces: dict[str, list[Tensor]] = {}
    sums: dict[str, Tensor] = {}
    for start in range(0, len(by_row["x"]), CHUNK_ROWS):
        part = {name: t[start : start + CHUNK_ROWS].double() for name, t in by_row.items()}
        dy = part.pop("dy")
        local = rows[(rows >= start) & (rows < start + len(dy))] - start
        leaves = {name: t.requires_grad_(name in wanted) for name, t in part.items()} | weights
        y = composition(**leaves, activation=case.activation, skip=case.skip, scale=case.scale)
        pieces.setdefault("y", []).append(y.detach()[local])
        if wanted:
            grads = torch.autograd.grad(y, tuple(leaves[name] for name in wanted), dy)
            for name, grad in zip(wanted, grads, strict=True):
                if name in _BY_ROW:
                    pieces.setdefault(name, []).append(grad[local])
                else:
                    sums[name] = sums[name] + grad if name in sums else grad
    return {name: torch.cat(t) for name, t in pieces.items()} | sums
