"""What tests and benchmarks share: inputs with weights of real sizes, and the error budget.

The budget judges a fused result beside eager's in the same dtype, both against float64:

    max|fused - exact| <= slack * max|eager - exact| + eps * max|exact|

with slack 4 for fp32, 2 for fp16 and bf16, and eps the dtype's rounding unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SLACK = {torch.float64: 4.0, torch.float32: 4.0, torch.bfloat16: 2.0, torch.float16: 2.0}


def make_inputs(
    shape: Sequence[int],
    H: int,
    dtype: torch.dtype = torch.float32,
    *,
    bias: bool = True,
    seed: int = 0,
    requires_grad: bool = False,
    device: str = "cpu",
) -> dict[str, Tensor | None]:
    """x [*shape] and w1, b1, w2, b2 for it, drawn so that x, the hidden block and the branch have unit size.

    They are drawn on the device, so that each kind of device has values of its own. The weights are never zero: AIM's
    zero `D_fc2` would hide most faults.
    """
    generator = torch.Generator("cpu" if device == "meta" else device).manual_seed(seed)
    D = shape[-1]

    def draw(*size: int, gain: float) -> Tensor:
        value = torch.randn(*size, generator=generator, device=device) * gain
        return value.to(dtype).requires_grad_(requires_grad)

    return {
        "x": draw(*shape, gain=1.0),
        "w1": draw(H, D, gain=D**-0.5),
        "b1": draw(H, gain=0.5) if bias else None,
        "w2": draw(D, H, gain=1.5 * H**-0.5),
        "b2": draw(D, gain=0.5) if bias else None,
    }


@dataclass(frozen=True)
class Budget:
    """Largest absolute errors against float64; with per_row, those of the row that is worst beside its allowance."""

    error: float
    eager_error: float
    allowed: float
    ok: bool

    def __str__(self) -> str:
        return f"error {self.error:.3g}, eager's {self.eager_error:.3g}, allowed {self.allowed:.3g}"


def budget(fused: Tensor, eager: Tensor, exact: Tensor, *, slack: float | None = None, per_row: bool = False) -> Budget:
    """Compare fused with eager [same shape and dtype] by their distance from exact [float64].

    per_row judges each row (all but the last dimension) by its own maxima, which a global norm would hide.
    """
    if fused.shape != exact.shape or eager.shape != exact.shape:
        raise ValueError(f"budget: shapes differ: {list(fused.shape)}, {list(eager.shape)}, {list(exact.shape)}")
    if fused.dtype is not eager.dtype:
        raise TypeError(f"budget: fused is {fused.dtype} but eager is {eager.dtype}; expected one dtype")
    if exact.numel() == 0:
        return Budget(0.0, 0.0, 0.0, True)
    slack = SLACK[fused.dtype] if slack is None else slack
    width = exact.shape[-1] if per_row and exact.dim() else exact.numel()
    truth = exact.double().reshape(-1, width)
    error = (fused.double().reshape(-1, width) - truth).abs().amax(1)
    eager_error = (eager.double().reshape(-1, width) - truth).abs().amax(1)
    allowed = slack * eager_error + torch.finfo(fused.dtype).eps * truth.abs().amax(1)
    worst = int((error - allowed).nan_to_num(nan=torch.inf).argmax())
    # A NaN on either side compares false and fails.
    ok = bool((error <= allowed).all())
    return Budget(error[worst].item(), eager_error[worst].item(), allowed[worst].item(), ok)


def assert_within_budget(
    name: str, fused: Tensor, eager: Tensor, exact: Tensor, *, slack: float | None = None, per_row: bool = False
) -> None:
    """AssertionError that names the tensor and its errors unless `budget` is kept."""
    result = budget(fused, eager, exact, slack=slack, per_row=per_row)
    if not result.ok:
        raise AssertionError(f"{name}: {result} ({result.error / max(result.allowed, 1e-300):.2f} of the allowance)")
