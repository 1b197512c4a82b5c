"""The CUDA kernels, emulated: the error budget for y and every gradient, and one result in every order of completion.

Each test hands a function of this file to the process of `emulated`; tests/emulator says what it models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import aim_fast
from aim_fast import reference
from cuda_cases import BOTH, CASES, DTYPES, FORMS, ONLY, PLANS, full
from emulation import EAGER, LAZY, RANDOM
from judge import assert_judged, evaluate, exact, judge, make_inputs
from numeric_cases import BF16, FP16, FP32, Case, build, same
from test_mixed import under, users_code

Emulated = Callable[..., Any]
FAMILIES = pytest.mark.parametrize("family", PLANS)
SMS = 4  # of the GPU that is imitated: fewer than there are tiles, so that kernels go from one to the next


def choose(kernels: str, order: int = EAGER, seed: int = 0, sms: int = SMS) -> None:
    """Which kernels run from here on, "family" or "family/plan", and how."""
    torch.ops.aim_fast.cuda_choose_kernels(kernels)
    torch.ops.aim_fast.cuda_emulate(order, seed, sms)


def judge_case(name: str) -> None:
    family = name.partition("-")[0]
    choose(family, LAZY)
    tensors, dy, options = build(CASES[name])
    judge(tensors, dy, **options)


@pytest.mark.parametrize("name", CASES)
def test_budget(emulated: Emulated, name: str) -> None:
    emulated(judge_case, name)


def judge_plan(family: str, plan: int, dtype: torch.dtype, H: int) -> None:
    choose(f"{family}/{plan}", LAZY)
    # More tiles than there are multiprocessors, the last one ragged.
    tensors, dy, options = full(dtype, 595, 192, H)
    judge(tensors, dy, **options)
    if dtype is FP32:
        return
    # fp32 x and dy, as under autocast.
    wide = tensors | {"x": tensors["x"].float(), "residual": tensors["residual"].float()}
    del wide["row_scale"]
    fused = evaluate(under(dtype, aim_fast.adapter), wide, dy, skip=True)
    assert_judged(fused, evaluate(under(dtype, users_code), wide, dy, skip=True), exact(wide, dy, skip=True))


@pytest.mark.parametrize(("number", "H"), [(0, 192), (-1, 64), (-1, 256)], ids=str)
@pytest.mark.parametrize(("family", "plan"), [(f, plan) for f, count in PLANS.items() for plan in range(count)])
def test_plans(emulated: Emulated, family: str, plan: int, number: int, H: int) -> None:
    emulated(judge_plan, family, plan, DTYPES[family][number], H)


def judge_last_round(plan: int, sms: int, M: int) -> None:
    choose(f"hopper/{plan}", LAZY, sms=sms)
    tensors, dy, options = full(BF16, M, 320, 192)
    judge(tensors, dy, **options)


@pytest.mark.parametrize(("plan", "sms", "M"), [(2, 6, 130), (1, 2, 330), (0, 4, 600)])
def test_last_round_is_cut(emulated: Emulated, plan: int, sms: int, M: int) -> None:
    """Three blocks of rows with room for six or two: all or the last are cut, into two and three columns of five."""
    emulated(judge_last_round, plan, sms, M)


def judge_three_consumers(dtype: torch.dtype, activation: str) -> None:
    tensors, dy, options = build(
        Case((595, 192), 192, dtype, activation, residual_as=same, row_scale=(595,), scale=(1,))
    )
    choose("hopper/0", LAZY)
    two = judge(tensors, dy, **options)
    for order in (LAZY, RANDOM):
        choose("hopper/3", order, seed=1)
        three = judge(tensors, dy, **options)
        assert all(torch.equal(three[name], two[name]) for name in ("y", "dx", "dresidual"))


@pytest.mark.parametrize(("dtype", "activation"), [(BF16, "gelu"), (FP16, "gelu"), (BF16, "quick_gelu")], ids=str)
def test_three_consumers(emulated: Emulated, dtype: torch.dtype, activation: str) -> None:
    """Which only plain calls have; the rows are those of two."""
    emulated(judge_three_consumers, dtype, activation)


def list_plans(dtype: torch.dtype) -> list[list[str]]:
    return [torch.ops.aim_fast.cuda_plans(-1, 192, 192, dtype, backward).split(",") for backward in (False, True)]


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_every_plan_is_tried(emulated: Emulated, dtype: torch.dtype) -> None:
    there = [f"{family}/{plan}" for family, count in PLANS.items() for plan in range(count) if dtype in DTYPES[family]]
    assert emulated(list_plans, dtype) == [there] * 2


# Kernels and calls whose work passes through rings, clusters, persistent loops and splits of every kind.
ORDERS = [
    *((f"hopper/{plan}", BF16, 595, 320, 192) for plan in range(PLANS["hopper"])),
    ("hopper", BF16, 331, 128, 320),
    ("ampere/0", BF16, 331, 192, 192),
    ("ampere/1", BF16, 197, 192, 256),
    ("ampere/4", BF16, 67, 264, 64),
    ("ampere", BF16, 197, 104, 200),
    *((f"tiles/{plan}", FP32, 331, 100, 68) for plan in range(PLANS["tiles"])),
    *((f"tiles/{plan}", BF16, 331, 200, 136) for plan in range(PLANS["tiles"])),
    ("tiles", FP32, 197, 256, 64),
]


def compare_orders(kernels: str, *call: Any) -> None:
    tensors, dy, options = full(*call)
    choose(kernels, EAGER)
    first = evaluate(aim_fast.adapter, tensors, dy, **options)
    for order, seed in ((EAGER, 0), (LAZY, 0), *((RANDOM, seed) for seed in range(4))):
        choose(kernels, order, seed)
        again = evaluate(aim_fast.adapter, tensors, dy, **options)
        for name, value in first.items():
            assert torch.equal(again[name], value), f"{name}: other bits in order {order} with seed {seed}"


@pytest.mark.parametrize("call", ORDERS, ids=lambda call: "-".join(map(str, call)))
def test_same_bits_in_every_order(emulated: Emulated, call: tuple[Any, ...]) -> None:
    """From run to run, and whenever asynchronous work takes effect."""
    emulated(compare_orders, *call)


def compare_sizes(family: str, dtype: torch.dtype) -> None:
    tensors, dy, options = full(dtype, 331, 192, 64)
    results = {}
    for sms in (1, 5, 132):
        # The tile, which the rule of tiles picks by the size of the GPU, has a say in how sums over D and H are formed.
        choose("tiles/1" if family == "tiles" else family, RANDOM, sms, sms)
        results[sms] = judge(tensors, dy, **options)
    for name in ("y", "dx", "dresidual"):
        assert torch.equal(results[1][name], results[5][name])
        assert torch.equal(results[1][name], results[132][name])


@pytest.mark.parametrize(("family", "dtype"), FORMS, ids=str)
def test_gpus_of_other_sizes(emulated: Emulated, family: str, dtype: torch.dtype) -> None:
    """Within the budget however the work is shared out; what is no sum over rows is the same to the bit."""
    emulated(compare_sizes, family, dtype)


def judge_each_row(family: str) -> None:
    choose(family, LAZY)
    for activation in ("gelu", "silu", "relu"):
        for dtype in DTYPES[family]:
            inputs = make_inputs((65, 64), 192, dtype, bias=False)
            most = 3 if dtype is BF16 else 2
            sizes = torch.logspace(-most, most, 65).unsqueeze(1)
            dy = torch.randn(65, 64, generator=torch.Generator().manual_seed(1))
            tensors = inputs | {"x": (inputs["x"] * sizes).to(dtype)}
            judge(tensors, (dy * sizes.flip(0)).to(dtype), activation=activation, per_row=True)


@FAMILIES
def test_budget_of_each_row(emulated: Emulated, family: str) -> None:
    """Rows from 1e-3 to 1e3 in bf16, else from 1e-2 to 1e2, each judged by its own size."""
    emulated(judge_each_row, family)


def check_pointwise(family: str, activation: str, dtype: torch.dtype) -> None:
    choose(family)
    one = torch.eye(64, dtype=dtype)
    z = torch.cat([torch.linspace(-9, 9, 3200), torch.logspace(-4, 0, 448), -torch.logspace(-4, 0, 448)]).to(dtype)
    weights = {"w1": one, "b1": None, "w2": one, "b2": None}
    got = evaluate(
        aim_fast.adapter,
        {"x": z.view(64, 64)} | weights,
        torch.ones(64, 64).to(dtype),
        wanted=["x"],
        activation=activation,
    )
    double = z.double().requires_grad_()
    h = reference.activate(double, activation)
    (slope,) = torch.autograd.grad(h.sum(), double)
    of_slope = 1.2e-4 if (activation, dtype) == ("gelu", BF16) else 2e-6
    units = 24 if dtype is FP32 else 0.6
    for name, truth, absolute in (("y", h.detach(), 0.0), ("dx", slope, of_slope)):
        # Half a unit in the last place for the rounding, and a tenth for all before it. In fp32 18 were found, in the
        # tail, where what is rounded is an exponent.
        unit = torch.exp2(truth.abs().clamp(min=2**-14).log2().floor()) * torch.finfo(dtype).eps
        error = (got[name].flatten().double() - truth).abs()
        assert (error <= units * unit + absolute).all(), (name, z[(error / unit).argmax()], (error / unit).max())


@pytest.mark.parametrize(("family", "dtype"), [(f, dtype) for f, dtypes in DTYPES.items() for dtype in dtypes], ids=str)
@pytest.mark.parametrize("activation", aim_fast.ACTIVATIONS)
def test_activation_pointwise(emulated: Emulated, family: str, activation: str, dtype: torch.dtype) -> None:
    """act and act' of single values: no sum hides which formula it is."""
    emulated(check_pointwise, family, activation, dtype)


def test_cases_are_for_all_families() -> None:
    assert ONLY.keys() == PLANS.keys()
    assert len(CASES) == len(FORMS) * len(BOTH) + sum(map(len, ONLY.values()))


def new_memory() -> Tensor:
    return torch.empty(1000)


def test_new_memory_is_nan(emulated: Emulated) -> None:
    assert emulated(new_memory).isnan().all()
