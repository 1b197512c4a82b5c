"""The error budget finds what it is for, and the inputs let it: each fault that DESIGN names is planted here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aim_fast.testing import SLACK, assert_within_budget, budget
from judge import make_inputs

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


@pytest.fixture
def exact() -> Tensor:
    return torch.randn(64, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_rounding_once_is_within(exact: Tensor, dtype: torch.dtype) -> None:
    rounded = exact.to(dtype)
    assert budget(rounded, rounded, exact).ok


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_one_unit_is_within_where_eager_is_exact(dtype: torch.dtype) -> None:
    ones = torch.ones(6, dtype=dtype)
    unit = torch.finfo(dtype).eps
    assert budget(ones + unit, ones, ones.double()).ok
    assert not budget(ones + 2 * unit, ones, ones.double()).ok


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_slack(exact: Tensor, dtype: torch.dtype) -> None:
    """The allowance is slack x eager's error + eps x the largest value: both sides of it."""
    unit = torch.zeros(4, dtype=torch.float64)
    unit[0] = 1.0  # the largest value
    step = 64 * torch.finfo(dtype).eps
    eager = unit.to(dtype) + torch.tensor([0, step, 0, 0], dtype=dtype)
    for factor, ok in ((SLACK[dtype], True), (SLACK[dtype] + 0.1, False)):
        off = unit.to(dtype) + torch.tensor([0, 0, 0, factor * step], dtype=dtype)
        assert budget(off, eager, unit).ok is ok
    assert budget(off, eager, unit, slack=5.0).ok
    assert {SLACK[FP32], SLACK[BF16], SLACK[FP16]} == {4.0, 2.0}
    assert SLACK[FP32] == 4.0


@pytest.mark.parametrize(
    "fault",
    [
        lambda y: y[:, -1].zero_(),
        lambda y: y[-1].zero_(),
        lambda y: y[8:16, 8:16].neg_(),
        lambda y: y[63, 47].add_(0.5),
        lambda y: y[5, 5].fill_(float("nan")),
        lambda y: y[5, 5].fill_(float("inf")),
        lambda y: y.fill_(float("nan")),
    ],
    ids=["column", "row", "tile", "element", "nan", "inf", "all_nan"],
)
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_local_faults_are_outside(exact: Tensor, fault, per_row: bool, dtype: torch.dtype) -> None:
    eager, fused = exact.to(dtype), exact.to(dtype)
    fault(fused)
    assert not budget(fused, eager, exact, per_row=per_row).ok
    with pytest.raises(AssertionError, match=r"dx: error .* allowed"):
        assert_within_budget("dx", fused, eager, exact, per_row=per_row)


def test_small_rows_need_per_row(exact: Tensor) -> None:
    """A small row that is lost altogether is invisible beside large ones, unless rows are judged apart."""
    sizes = torch.logspace(-3, 3, 64, dtype=torch.float64).unsqueeze(1)
    truth = exact * sizes
    eager, fused = truth.to(BF16), truth.to(BF16)
    fused[0] = 0
    assert budget(fused, eager, truth).ok
    result = budget(fused, eager, truth, per_row=True)
    assert not result.ok
    assert result.error == pytest.approx(truth[0].abs().max().item())


def test_eager_that_is_wrong_buys_nothing_for_other_rows(exact: Tensor) -> None:
    eager, fused = exact.to(FP32), exact.to(FP32)
    eager[3] += 1
    fused[4] += 1
    assert not budget(fused, eager, exact, per_row=True).ok


def test_nothing_to_judge() -> None:
    nothing = torch.empty(0, 4)
    assert budget(nothing, nothing, nothing.double()).ok


def test_misuse() -> None:
    one = torch.ones(2, 3)
    with pytest.raises(ValueError, match="shapes differ"):
        budget(one, one, torch.ones(3, 2).double())
    with pytest.raises(TypeError, match="one dtype"):
        budget(one.half(), one, one.double())


def test_inputs() -> None:
    """Same seed, same values; another seed, others; non-zero weights that keep every stage at unit size."""
    first, again, other = (make_inputs((5, 7, 256), 64, FP32, seed=seed) for seed in (3, 3, 4))
    assert {name: tuple(t.shape) for name, t in first.items()} == {
        "x": (5, 7, 256),
        "w1": (64, 256),
        "b1": (64,),
        "w2": (256, 64),
        "b2": (256,),
    }
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
        assert not torch.equal(value, other[name]), name
        assert (value != 0).all(), name
    z = first["x"] @ first["w1"].t() + first["b1"]
    y = torch.nn.functional.gelu(z) @ first["w2"].t() + first["b2"]
    assert 0.5 < z.std() < 2
    assert 0.5 < y.std() < 2


def test_inputs_as_asked() -> None:
    tensors = make_inputs((4, 8), 2, BF16, bias=False, requires_grad=True)
    assert tensors["b1"] is tensors["b2"] is None
    for name in ("x", "w1", "w2"):
        value = tensors[name]
        assert value is not None
        assert value.dtype is BF16
        assert value.requires_grad
        assert value.is_leaf
