"""The error budget for y and every gradient, with each variant of the kernels under test."""

from __future__ import annotations

import pytest
import torch

import aim_fast
from judge import evaluate, exact, judge, make_inputs
from numeric_cases import CASES, MORE_ROWS, build

pytestmark = pytest.mark.usefixtures("poison")

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize("name", CASES | MORE_ROWS)
def test_budget(isa: str, name: str) -> None:
    tensors, dy, options = build((CASES | MORE_ROWS)[name])
    judge(tensors, dy, **options)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(
    ("activation", "dtype"),
    [*((name, FP32) for name in aim_fast.ACTIVATIONS), ("gelu", BF16), ("gelu", FP16), ("relu", BF16), ("relu", FP16)],
    ids=str,
)
def test_budget_of_each_row(isa: str, dtype: torch.dtype, activation: str, times: int) -> None:
    """Rows from 1e-3 to 1e3, each judged by its own size; no biases, which would hide the small ones.

    Three times the same rows are enough of them for the CPU kernel to run another way. H is large: with few hidden
    units the error of a row, eager's too, hangs on how one z happened to be rounded.
    """
    inputs = make_inputs((97, 64), 128, dtype, bias=False)
    # Where tanh is 1 to float64, its derivative 1 - tanh^2 is 0 there, and no truth to judge 4 exp(-2 z) by.
    sizes = torch.logspace(-3, 0 if activation == "tanh" else 3, 97).to(dtype).unsqueeze(1)
    dy = torch.randn(97, 64, generator=torch.Generator().manual_seed(1)).to(dtype) * sizes.flip(0)
    tensors = inputs | {"x": (inputs["x"] * sizes).repeat(times, 1)}
    judge(tensors, dy.repeat(times, 1), activation=activation, per_row=True)


@pytest.mark.parametrize("activation", aim_fast.ACTIVATIONS)
def test_activation_pointwise(isa: str, activation: str) -> None:
    """D = H = 1 with unit weights shows act(x) and act'(x) themselves, each value on its own, tails included."""
    tiny = torch.logspace(-30, 0, 61)
    x = torch.cat([torch.linspace(-12, 12, 4801), tiny, -tiny]).unsqueeze(1)
    tensors = {"x": x, "w1": torch.ones(1, 1), "b1": None, "w2": torch.ones(1, 1), "b2": None}
    ones = torch.ones_like(x)
    got = evaluate(aim_fast.adapter, tensors, ones, wanted=["x"], activation=activation)
    truth = exact(tensors, ones, wanted=["x"], activation=activation)
    # Some ten roundings: of x for act, which is x times a factor of about 1; more for the longer act' (eager: 1e-6).
    allowed = {"y": x.abs() * 6e-7 + 1e-37, "dx": ones * 2e-6}
    for name, limit in allowed.items():
        excess = (got[name].double() - truth[name]).abs() / limit
        assert excess.max() <= 1, f"{name} is {excess.max():.2f} of what is allowed at x = {x[excess.argmax()].item()}"


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("ties", [True, False], ids=["ties", "any"])
def test_rounding_to_nearest_even(isa: str, dtype: torch.dtype, ties: bool) -> None:
    """With a zero branch y is x + residual rounded once: torch's bits, for every 16-bit x but the smallest of bf16.

    Those are subnormal as fp32 too, which the bf16 instructions of AVX-512 take for zero.
    """
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    x = every[every.isfinite() & ((every == 0) | (every.float().abs() >= 2.0**-110))]
    x = x[: x.numel() // 37 * 37].view(-1, 37)
    digits = 8 if dtype is BF16 else 11
    half_unit = torch.ldexp(torch.ones(x.shape), torch.frexp(x.float()).exponent - digits - 1)
    factor = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tensors = make_inputs(x.shape, 4, dtype, bias=False)
    tensors["x"], tensors["residual"] = x, (half_unit if ties else x.float() * factor).to(dtype)
    tensors["w1"].zero_()
    tensors["w2"].zero_()
    dy = x.roll(77)
    got = evaluate(aim_fast.adapter, tensors, dy, skip=True)
    assert torch.equal(got["y"], x + tensors["residual"])
    assert torch.equal(got["dx"], dy)
    assert torch.equal(got["dresidual"], dy)
