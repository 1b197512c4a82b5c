"""The CUDA kernels, emulated: the error budget for y and every gradient, and one result in every order of completion.

Each test hands a function of this file to the process of `emulated`; tests/emulator says what it models.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

import aim_fast
from aim_fast import reference
from cuda_cases import BOTH, CASES, DTYPES, ONLY, PLANS, full
from emulation import EAGER, LAZY, RANDOM
from interpreter import fill_new_memory
from judge import TRAINABLE, assert_judged, evaluate, exact, judge, make_inputs
from numeric_cases import BF16, FP16, FP32, Case, build, same
from test_mixed import AUTOCAST, PROMOTED, under, users_code
from test_mixed import inputs as mixed_inputs
from test_nonfinite import INF, NAN, assert_same_positions

Emulated = Callable[..., Any]
FAMILIES = pytest.mark.parametrize("family", PLANS)
TENSOR_CORES = pytest.mark.parametrize("family", [family for family in PLANS if FP32 not in DTYPES[family]])
SMS = 4  # of the GPU that is imitated: fewer than there are tiles, so that kernels go from one to the next


def choose(kernels: str, order: int = EAGER, seed: int = 0, sms: int = SMS) -> None:
    """Which kernels run from here on, "family" or "family/plan", and how."""
    torch.ops.aim_fast.cuda_choose_kernels(kernels)
    torch.ops.aim_fast.cuda_emulate(order, seed, sms)


def narrowest(family: str) -> torch.dtype:
    """fp16, or what the family has in its place."""
    return DTYPES[family.partition("/")[0]][-1]


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


# Kernels and shapes whose work passes through rings, clusters, persistent loops and splits of every kind.
ORDERS = {
    **{f"hopper/{plan}": (595, 320, 192) for plan in range(PLANS["hopper"])},
    "hopper": (331, 128, 320),
    "ampere/0": (331, 192, 192),
    "ampere/1": (197, 192, 256),
    "ampere/4": (67, 264, 64),
    "ampere": (197, 104, 200),
    **{f"simt/{plan}": (331, 100, 68) for plan in range(PLANS["simt"])},
    "simt": (197, 256, 64),
}


def compare_orders(kernels: str) -> None:
    tensors, dy, options = full(DTYPES[kernels.partition("/")[0]][0], *ORDERS[kernels])
    choose(kernels, EAGER)
    first = evaluate(aim_fast.adapter, tensors, dy, **options)
    for order, seed in ((EAGER, 0), (LAZY, 0), *((RANDOM, seed) for seed in range(4))):
        choose(kernels, order, seed)
        again = evaluate(aim_fast.adapter, tensors, dy, **options)
        for name, value in first.items():
            assert torch.equal(again[name], value), f"{name}: other bits in order {order} with seed {seed}"


@pytest.mark.parametrize("kernels", ORDERS)
def test_same_bits_in_every_order(emulated: Emulated, kernels: str) -> None:
    """From run to run, and whenever asynchronous work takes effect."""
    emulated(compare_orders, kernels)


def compare_sizes(family: str) -> None:
    tensors, dy, options = full(narrowest(family), 331, 192, 64)
    results = {}
    for sms in (1, 5, 132):
        # The tile, which simt's rule picks by the size of the GPU, has a say in how sums over D and H are formed.
        choose("simt/1" if family == "simt" else family, RANDOM, sms, sms)
        results[sms] = judge(tensors, dy, **options)
    for name in ("y", "dx", "dresidual"):
        assert torch.equal(results[1][name], results[5][name])
        assert torch.equal(results[1][name], results[132][name])


@FAMILIES
def test_gpus_of_other_sizes(emulated: Emulated, family: str) -> None:
    """Within the budget however the work is shared out; what is no sum over rows is the same to the bit."""
    emulated(compare_sizes, family)


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


def judge_autocast(family: str, name: str) -> None:
    choose(family, LAZY)
    x, w, residual, autocast, skip, y = AUTOCAST[name]
    tensors, dy = mixed_inputs(x, w, residual, 131, (128, 64))
    for part in (slice(None), slice(7)):
        some = {n: t[part] if n in ("x", "residual") else t for n, t in tensors.items()}
        options: dict[str, Any] = {"skip": skip, "scale": 0.5}
        fused = evaluate(under(autocast, aim_fast.adapter), some, dy[part], **options)
        assert fused["y"].dtype is y
        eager = evaluate(under(autocast, users_code), some, dy[part], **options)
        assert_judged(fused, eager, exact(some, dy[part], **options))


@TENSOR_CORES
@pytest.mark.parametrize("name", AUTOCAST)
def test_autocast(emulated: Emulated, family: str, name: str) -> None:
    emulated(judge_autocast, family, name)


def takes(family: str, name: str) -> bool:
    """Whether the dtype that x and the weights are promoted to is one of the family's."""
    return torch.promote_types(*PROMOTED[name][:2]) in DTYPES[family]


def judge_promotion(family: str, name: str) -> None:
    choose(family, LAZY)
    x, w, residual, skip, y = PROMOTED[name]
    tensors, dy = mixed_inputs(x, w, residual, 67, (128, 64))
    for other in (FP32, BF16, FP16):
        parts = {"b1": tensors["b1"].to(other), "b2": tensors["b2"].to(other), "scale": torch.rand(128).to(other)}
        # A parameter that is wider than x and the weights would make the products wider too.
        if torch.promote_types(other, w) is not w:
            parts = {"scale": parts["scale"].to(w)}
        assert judge(tensors | parts | {"row_scale": torch.rand(67).to(other)}, dy, skip=skip)["y"].dtype is y


@pytest.mark.parametrize(("family", "name"), [(f, name) for f in PLANS for name in PROMOTED if takes(f, name)])
def test_promotion(emulated: Emulated, family: str, name: str) -> None:
    emulated(judge_promotion, family, name)


def compare_needs(family: str, recompute: bool, scaled: bool) -> None:
    choose(family, LAZY)
    tensors, dy, options = full(DTYPES[family][0], 67, 64, 64)
    if not scaled:
        del tensors["scale"]
    everything = judge(tensors, dy, **options)
    trainable = [name for name in TRAINABLE if name != "residual" and name in tensors]
    masks = [wanted for count in range(1, 7) for wanted in combinations(trainable, count)]
    assert len(masks) == (63 if scaled else 31)
    for wanted in masks:
        some = evaluate(aim_fast.adapter, tensors, dy, wanted=wanted, recompute=recompute, **options)
        assert some.keys() == {"y", *(f"d{name}" for name in wanted)}
        for name, value in some.items():
            assert torch.equal(value, everything[name]), f"{name} when {wanted} are wanted"


@pytest.mark.parametrize(("family", "scaled"), [*((family, True) for family in PLANS), ("simt", False)])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_only_what_is_wanted(emulated: Emulated, family: str, scaled: bool, recompute: bool) -> None:
    """Every mask of `needs`: frozen tensors change no bit of the others' gradients, nor does a z that is made again.

    In fp32 few rows without a scale go a way of their own.
    """
    emulated(compare_needs, family, recompute, scaled)


def check_nonfinite(family: str) -> None:
    choose(family)
    for activation in aim_fast.ACTIVATIONS:
        for name, place, value in (
            ("x", (2, 5), NAN),
            ("x", (64, 63), INF),
            ("x", (0, 0), -INF),
            ("w1", (3, 7), INF),
            ("b1", 63, INF),
            ("w2", (63, 63), NAN),
            ("b2", 39, NAN),
            ("residual", (66, 63), -INF),
            ("row_scale", 4, INF),
        ):
            tensors, dy, options = full(narrowest(family), 67, 64, 64)
            tensors[name][place] = value
            got = evaluate(aim_fast.adapter, tensors, dy, **options | {"activation": activation})
            assert_same_positions(got, exact(tensors, dy, **options | {"activation": activation}))


@FAMILIES
def test_nonfinite_positions(emulated: Emulated, family: str) -> None:
    """NaN and inf go where eager has them, and no further."""
    emulated(check_nonfinite, family)


def check_far_rows(family: str, M: int, stride: int) -> None:
    choose(family, LAZY)
    fill_new_memory(False)
    dtype = narrowest(family)
    stride = stride * 2 // dtype.itemsize
    tensors, dy, options = full(dtype, M, 64, 64)
    # zeros: memory that is not touched is not there either
    far = torch.zeros((M - 1) * stride + 64, dtype=dtype).as_strided((M, 64), (stride, 1))
    assert (M - 1) * stride * dtype.itemsize > 2**32
    far.copy_(tensors["x"])
    got = evaluate(aim_fast.adapter, tensors | {"x": far, "residual": far}, dy, **options)
    expected = evaluate(aim_fast.adapter, tensors | {"residual": tensors["x"]}, dy, **options)
    for name, value in expected.items():
        assert torch.equal(got[name], value), name
    fill_new_memory(True)


@FAMILIES
@pytest.mark.parametrize(("M", "stride"), [(6, 2**29), (300, 2**23)], ids=["within_a_tile", "between_tiles"])
def test_rows_beyond_32_bits(emulated: Emulated, family: str, M: int, stride: int) -> None:
    emulated(check_far_rows, family, M, stride)


def test_cases_are_for_all_families() -> None:
    assert ONLY.keys() == PLANS.keys()
    assert len(CASES) == len(PLANS) * len(BOTH) + sum(map(len, ONLY.values()))


def new_memory() -> Tensor:
    return torch.empty(1000)


def test_new_memory_is_nan(emulated: Emulated) -> None:
    assert emulated(new_memory).isnan().all()
