"""The kernels of csrc/cuda/ampere against float64, in every plan and order of asynchronous work, and their bits.

They run where the loaded library has them: emulated, in the process that test_cuda_files.py starts,
or on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from aim_fast import ops, reference
from judge import Tensors, all_placed, assert_judged, make_inputs, placed
from numeric_cases import expanded_rows, same, turned

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
OPS = torch.ops.aim_fast
EMULATED = torch._C._dispatch_has_kernel_for_dispatch_key("aim_fast::cuda_forward", "CPU")
DEVICE = "cpu" if EMULATED else "cuda"
if not (EMULATED or torch.cuda.is_available()):
    pytest.skip("needs the emulated library, or a GPU", allow_module_level=True)
pytestmark = pytest.mark.usefixtures("poison")

# Order of completion (0 at once, 1 as late as possible, 2 at random) and seed.
ORDERS = ((0, 0), (1, 0), (2, 1), (2, 2))
PLANS = range(7)
NAMES = ("dx", "dw1", "db1", "dw2", "db2", "dscale")
ALL = (1 << len(NAMES)) - 1


@dataclass(frozen=True)
class Case:
    """One regime; x_as, dy_as and residual_as change strides, not values."""

    shape: tuple[int, ...]
    H: int
    dtype: torch.dtype = BF16  # of the products and the weights
    x_dtype: torch.dtype | None = None
    activation: str = "gelu"
    skip: bool = True
    bias: bool = True
    alpha: float = 1.0
    scale: int | None = None  # elements
    scale_dtype: torch.dtype = FP32
    row_scale: torch.dtype | None = None
    residual: torch.dtype | None = None
    residual_as: Callable[[Tensor], Tensor] = same
    x_as: Callable[[Tensor], Tensor] = same
    dy_as: Callable[[Tensor], Tensor] = same
    keep_z: bool = True


def padded_by_a_vector(t: Tensor) -> Tensor:
    """Rows that lie 8 elements further apart than they are long."""
    return torch.nn.functional.pad(t, (0, 8))[..., :-8]


SHAPES = {
    f"{M}x{D}x{H}": Case((M, D), H, dtype)
    for M, D, H, dtype in (
        (1, 8, 8, BF16),
        (15, 40, 24, FP16),
        (17, 64, 64, BF16),
        (64, 72, 96, FP16),
        (100, 64, 192, BF16),
        (100, 72, 200, FP16),
        (130, 40, 256, BF16),
        (517, 136, 40, BF16),
        (33, 768, 192, BF16),
    )
}
OPTIONS = {
    "bare": Case((50, 72), 40, skip=False, bias=False),
    "no_z": Case((50, 72), 40, keep_z=False),
    "alpha": Case((50, 72), 40, FP16, alpha=-0.5, activation="relu"),
    "scale_one": Case((50, 72), 40, scale=1, scale_dtype=BF16, activation="silu"),
    "scale_wide": Case((50, 72), 40, scale=72, row_scale=BF16, activation="tanh"),
    "scale_wide_half": Case((50, 72), 136, FP16, scale=72, scale_dtype=FP16, skip=False, activation="leaky_relu"),
    "row_scale": Case((50, 72), 40, row_scale=FP32, activation="quick_gelu"),
    "residual": Case((50, 72), 40, residual=BF16, activation="gelu_tanh"),
    "residual_other_half": Case((50, 72), 40, residual=FP16, residual_as=padded_by_a_vector, alpha=0.5),
    "residual_fp32": Case((5, 10, 72), 40, FP16, residual=FP32, residual_as=turned(1, 0, 2), row_scale=FP16),
    "x_transposed": Case((9, 6, 72), 40, x_as=turned(1, 0, 2), dy_as=turned(1, 0, 2), activation="identity"),
    "x_turned": Case((3, 4, 5, 72), 200, x_as=turned(2, 0, 1, 3), dy_as=turned(0, 2, 1, 3), residual=BF16),
    "dy_expanded": Case((9, 6, 72), 40, dy_as=expanded_rows, x_as=expanded_rows, row_scale=FP32),
    "x_fp32": Case((150, 72), 40, x_dtype=FP32, scale=1),
    "x_fp32_wide": Case((9, 15, 104), 200, FP16, x_dtype=FP32, x_as=turned(1, 0, 2), scale=104, row_scale=FP32),
    "x_fp32_no_skip": Case((50, 72), 136, x_dtype=FP32, skip=False, residual=FP32),
    "x_other_half": Case((50, 72), 40, x_dtype=FP16),
}
CASES = SHAPES | OPTIONS


@pytest.fixture(autouse=True)
def ampere() -> Iterator[None]:
    """The kernels under test by their rule, asynchronous work in its earliest order, four multiprocessors."""
    OPS.cuda_choose_kernels("ampere")
    OPS.cuda_emulate(0, 0, 4)
    yield
    OPS.cuda_choose_kernels("")


@dataclass(frozen=True)
class Call:
    """The tensors of a case, and dy and z for its backward: one z for all, so that errors of z do not count twice."""

    case: Case
    tensors: Tensors
    dy: Tensor
    z: Tensor

    @property
    def options(self) -> tuple[Any, ...]:
        return self.case.activation, self.case.skip, self.case.alpha, self.case.dtype


def build(case: Case, seed: int = 0) -> Call:
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    t = make_inputs(case.shape, case.H, case.dtype, bias=case.bias, seed=seed)
    t["x"] = case.x_as(t["x"].to(case.x_dtype or case.dtype))
    t["scale"] = None if case.scale is None else draw((case.scale,), case.scale_dtype)
    kept = (torch.rand(case.shape[:-1], generator=generator) < 0.75).float() / 0.75
    t["row_scale"] = None if case.row_scale is None else kept.to(case.row_scale)
    t["residual"] = None if case.residual is None else case.residual_as(draw(case.shape, case.residual))
    z = reference.preactivation(t["x"], t["w1"], t["b1"], case.dtype)
    y_dtype = reference.output_dtype(case.dtype, t["x"], case.skip, t["residual"])
    return Call(case, t, case.dy_as(draw(case.shape, y_dtype)), z)


def run_forward(call: Call) -> dict[str, Tensor]:
    t = all_placed(call.tensors, DEVICE)
    y, z, x_kept = OPS.cuda_forward(
        *(t[name] for name in ("x", "w1", "b1", "w2", "b2", "scale", "row_scale", "residual")),
        *call.options,
        call.case.keep_z,
        True,
    )
    results = {"y": y.cpu(), "z": z.cpu()} if call.case.keep_z else {"y": y.cpu()}
    return results | {"x_kept": x_kept.cpu()} if ops.narrows(call.tensors["x"], call.case.dtype) else results


def run_backward(call: Call, needs: int = ALL, *, recompute: bool = False) -> dict[str, Tensor]:
    t = all_placed(call.tensors, DEVICE)
    results = OPS.cuda_backward(
        placed(call.dy, DEVICE),
        t["x"],
        None if recompute else placed(call.z, DEVICE),
        *(t[name] for name in ("w1", "b1", "w2", "b2", "scale", "row_scale")),
        *call.options,
        call.tensors["x"].dtype,
        needs,
    )
    return {name: r.cpu() for name, r in zip(NAMES, results, strict=True) if r.numel()}


def expected(call: Call, *, exact: bool, needs: int = ALL, recompute: bool = False) -> dict[str, Tensor]:
    """The composition, in the dtypes of the call or in float64."""

    def cast(t: Tensor) -> Tensor:
        return t.double() if exact else t

    case = call.case
    t: Tensors = {name: None if v is None else cast(v) for name, v in call.tensors.items()}
    options: Tensors = {"activation": case.activation, "skip": case.skip, "alpha": case.alpha}
    options["dtype"] = torch.float64 if exact else case.dtype
    y, z = reference.forward(**t, **options)
    x_kept = t["x"].to(t["x"].dtype if exact else case.dtype)
    del t["residual"]
    grads = reference.backward(
        cast(call.dy),
        z=None if recompute else cast(call.z),
        x_dtype=t["x"].dtype,
        needs=[bool(needs >> i & 1) for i in range(len(NAMES))],
        **t,
        **options,
    )
    results = {"y": y, "z": z, "x_kept": x_kept}
    return results | {name: g for name, g in zip(NAMES, grads, strict=True) if g is not None}


def judged(call: Call, results: dict[str, Tensor], **how: Any) -> None:
    eager, truth = expected(call, exact=False, **how), expected(call, exact=True, **how)
    keys = results.keys()
    assert_judged(results, {k: eager[k] for k in keys}, {k: truth[k] for k in keys})


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[name].contiguous().view(torch.uint8), b[name].contiguous().view(torch.uint8)) for name in a
    )


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    """Within the budget, in the layout that ops.py promises, and with the same bits in every order."""
    call = build(CASES[name])
    first = run_forward(call) | run_backward(call)
    judged(call, first)
    x, residual = call.tensors["x"], call.tensors["residual"]
    assert first["y"].stride() == ops.empty_like(x if residual is None else residual, first["y"].dtype).stride()
    for order, seed in ORDERS[1:]:
        OPS.cuda_emulate(order, seed, 4)
        assert same_bits(first, run_forward(call) | run_backward(call)), f"order {order}, seed {seed}"


@pytest.mark.parametrize("name", ["100x72x200", "x_fp32", "residual_fp32"])
@pytest.mark.parametrize("plan", PLANS)
def test_plan(name: str, plan: int) -> None:
    """Every plan gives the same rows: how they are shared out changes no sum."""
    call = build(CASES[name], seed=1)
    by_rule = run_forward(call) | run_backward(call)
    OPS.cuda_choose_kernels(f"ampere/{plan}")
    for order, seed in ORDERS:
        OPS.cuda_emulate(order, seed, 4)
        assert same_bits(by_rule, run_forward(call) | run_backward(call)), f"order {order}, seed {seed}"


@pytest.mark.parametrize("name", ["scale_wide", "x_fp32"])
@pytest.mark.parametrize("needs", [1, 2, 4, 8, 16, 32, 3, 6, 12, 20, 24, 38, 40, 49, 52, 62])
def test_needs(name: str, needs: int) -> None:
    """Any subset of the gradients, with and without z."""
    call = build(CASES[name], seed=2)
    OPS.cuda_emulate(*ORDERS[needs % len(ORDERS)], 4)
    judged(call, run_backward(call, needs), needs=needs)
    judged(call, run_backward(call, needs, recompute=True), needs=needs, recompute=True)


@pytest.mark.parametrize("sms", [1, 3, 40])
def test_ranges_of_rows(sms: int) -> None:
    """However many ranges of rows there are, the last one short; some GPUs give one range, others many."""
    call = build(replace(CASES["row_scale"], shape=(1025, 72)))
    OPS.cuda_emulate(0, 0, sms)
    judged(call, run_backward(call))


def test_rows_do_not_mix() -> None:
    """A row of infinite x spoils its own y and no other row's."""
    case = Case((70, 40), 24, skip=False)
    call = build(case)
    clean = run_forward(call)
    call.tensors["x"][33] = math.inf
    spoilt = run_forward(call)
    assert spoilt["y"][33].isnan().all()
    others = torch.arange(70) != 33
    assert torch.equal(clean["y"][others], spoilt["y"][others])


def test_padding_stays_zero() -> None:
    """An infinite value times the zeros beyond H is NaN, which must not reach the results."""
    call = build(Case((70, 40), 24, activation="tanh", skip=False))
    call.tensors["x"][33, 5] = math.inf
    assert run_forward(call)["y"].isfinite().all()  # tanh of an infinite z is 1 or -1


@pytest.mark.parametrize(("D", "H", "dtype"), [(36, 16, BF16), (40, 20, BF16), (40, 264, BF16), (40, 16, FP32)])
def test_refusal(D: int, H: int, dtype: torch.dtype) -> None:
    """What the kernels do not take is refused before anything runs."""
    call = build(Case((5, D), H, dtype))
    with pytest.raises(RuntimeError, match=f"do not take D = {D}, H = {H}"):
        run_forward(call)
