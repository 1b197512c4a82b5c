"""The Triton kernels, interpreted: the error budget for y and every gradient, at small shapes of real ratios.

Each test hands a function of this file to the process of `interpreted`; tests/interpreter.py mends what needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import aim_fast
from aim_fast import reference, triton_device
from aim_fast.kernels import tiling
from interpreter import fill_new_memory
from judge import TRAINABLE, Tensors, assert_judged, evaluate, exact, judge, make_inputs
from numeric_cases import BF16, CASES, FP16, FP32, Case, build, padded_rows, same, turned
from test_mixed import AUTOCAST, PROMOTED, under, users_code
from test_mixed import inputs as mixed_inputs
from test_nonfinite import INF, NAN, assert_same_positions

Interpreted = Callable[..., Any]

# Of the CPU's cases those that are small; what is special to these kernels is below.
NAMES = (
    *("empty", "empty_bf16", "vector", "one_row_fp16", "one_by_one", "one_column", "one_hidden", "seven"),
    *("seventeen", "few_ragged", "few_ragged_bf16", "few_ragged_fp16", "few_transposed", "odd_pairs_bf16"),
    *("transposed_bf16", "transposed_residual", "transposed_three", "four_leading", "nine_leading", "columns"),
    *("misaligned_bf16", "expanded_x", "summed", "weights_transposed", "weights_strided", "padded_fp16"),
    *("scale_one", "scale_wide_bf16", "sample_scale", "token_scale", "last_scale_fp16", "no_bias", "no_bias_bf16"),
    *("tanh_fp16", "gelu_bf16", "relu_bf16", "silu_fp16"),
)
MORE = {
    # H in parts of 128, 64, 32 and 16, the last one ragged or not; D below, at and above a block.
    "parts_192": Case((9, 96), 192, BF16),
    "parts_150": Case((9, 40), 150, FP32, "silu", residual_as=same),
    "parts_320": Case((5, 64), 320, FP16, scale=(64,)),
    "parts_496": Case((5, 33), 496, BF16, "relu", row_scale=(5,)),
    "parts_250_fp32": Case((5, 130), 250, FP32, scale=(1,)),
    "parts_257_fp32": Case((5, 40), 257, FP32, "silu", residual_as=same, scale=(40,)),
    "parts_450_fp32": Case((7, 33), 450, FP32, row_scale=(7,)),
    "parts_512_fp32": Case((5, 72), 512, FP32, "relu", bias=False, scale=(72,)),
    # Several tiles of rows and several slices of them, the last ones ragged.
    "tiles": Case((1031, 24), 6, FP32, residual_as=padded_rows, scale=(24,), row_scale=(1031,)),
    "tiles_bf16": Case((523, 48), 12, BF16, x_as=padded_rows, scale=(1,)),
    # More dimensions than the kernels walk, in every tensor.
    "four_strided": Case(
        (2, 3, 4, 3, 24),
        8,
        BF16,
        x_as=turned(3, 1, 0, 2, 4),
        dy_as=turned(2, 0, 3, 1, 4),
        residual_as=turned(1, 3, 0, 2, 4),
        row_scale=(3, 1, 3),
    ),
    "samples": Case((7, 43, 32), 8, BF16, x_as=turned(1, 0, 2), residual_as=same, row_scale=(7, 1)),
    **{f"{name}_all": Case((61, 40), 24, FP32, name, spread=4.0) for name in aim_fast.ACTIVATIONS},
}
EVERY = {name: CASES[name] for name in NAMES} | MORE


def judge_case(name: str) -> None:
    tensors, dy, options = build(EVERY[name])
    judge(tensors, dy, **options)


@pytest.mark.parametrize("name", EVERY)
def test_budget(interpreted: Interpreted, name: str) -> None:
    interpreted(judge_case, name)


def judge_each_row(activation: str) -> None:
    inputs = make_inputs((33, 32), 96, FP32, bias=False)
    sizes = torch.logspace(-3, 0 if activation == "tanh" else 3, 33).unsqueeze(1)
    dy = torch.randn(33, 32, generator=torch.Generator().manual_seed(1))
    judge(inputs | {"x": inputs["x"] * sizes}, dy * sizes.flip(0), activation=activation, per_row=True)


@pytest.mark.parametrize("activation", aim_fast.ACTIVATIONS)
def test_budget_of_each_row(interpreted: Interpreted, activation: str) -> None:
    """Rows from 1e-3 to 1e3, each judged by its own size, as in test_numerics.py."""
    interpreted(judge_each_row, activation)


@contextmanager
def planned(kernel: str, change: Callable[[tiling.Plan], tiling.Plan]) -> Iterator[None]:
    """Every plan of a kernel changed."""
    real = tiling.plans

    def plans(gpu: tiling.Gpu, which: str, *arguments: Any) -> list[tiling.Plan]:
        found = real(gpu, which, *arguments)
        return [change(plan) for plan in found] if which == kernel else found

    tiling.plans = plans
    triton_device.plan.cache_clear()
    try:
        yield
    finally:
        tiling.plans = real
        triton_device.plan.cache_clear()


def full(dtype: torch.dtype, M: int = 37, D: int = 150, H: int = 24) -> tuple[Tensors, Tensor]:
    """The tensors of a call with every term and every gradient, and dy."""
    generator = torch.Generator().manual_seed(1)
    tensors = make_inputs((M, D), H, dtype)
    tensors["residual"], dy = torch.randn(2, M, D, generator=generator).to(dtype).unbind()
    tensors["scale"] = torch.randn(D, generator=generator).to(dtype)
    tensors["row_scale"] = torch.rand(M, generator=generator)
    return tensors, dy


def judge_split(kernel: str, split: int) -> None:
    # Ten slices of one block of rows, more than are added up in one turn.
    tensors, dy = full(BF16, 581, 24, 6) if kernel == "dw" else full(BF16)
    whole = judge(tensors, dy, skip=True)
    with planned(kernel, lambda plan: plan._replace(split=split)):
        parted = judge(tensors, dy, skip=True)
    for name, value in whole.items():
        # Only the sums over rows are taken in another order, and only when it is they that are divided.
        if kernel != "dw" or name not in ("dw1", "dw2", "dscale"):
            assert torch.equal(parted[name], value), name


@pytest.mark.parametrize(("kernel", "split"), [("fwd", 2), ("fwd", 4), ("dx", 2), ("dx", 4), ("dw", 3), ("dw", 50)])
def test_work_divided_otherwise(interpreted: Interpreted, kernel: str, split: int) -> None:
    """Spans of columns for few rows, slices of rows for the weights: within the budget, and y and dx to the bit."""
    interpreted(judge_split, kernel, split)


def judge_recompute() -> None:
    tensors, dy = full(BF16)
    kept = judge(tensors, dy, skip=True)
    again = evaluate(aim_fast.adapter, tensors, dy, skip=True, recompute=True)
    run_again = evaluate(aim_fast.adapter, tensors, dy, skip=True)
    for name, value in kept.items():
        assert torch.equal(again[name], value), f"{name} of the recomputed z"
        assert torch.equal(run_again[name], value), f"{name} of the second run"


def test_recompute_and_run_again_give_the_same_bits(interpreted: Interpreted) -> None:
    interpreted(judge_recompute)


def judge_autocast(name: str, hidden: int = 20) -> None:
    x, w, residual, autocast, skip, y = AUTOCAST[name]
    tensors, dy = mixed_inputs(x, w, residual, 11, (72, hidden))
    options: dict[str, Any] = {"skip": skip, "scale": 0.5}
    fused = evaluate(under(autocast, aim_fast.adapter), tensors, dy, **options)
    assert fused["y"].dtype is y
    assert_judged(fused, evaluate(under(autocast, users_code), tensors, dy, **options), exact(tensors, dy, **options))


@pytest.mark.parametrize("name", AUTOCAST)
def test_autocast(interpreted: Interpreted, name: str) -> None:
    interpreted(judge_autocast, name)


@pytest.mark.parametrize(("name", "hidden"), [("mlp_adapter", 512), ("t_adapter_in", 300), ("s_adapter_fp16", 450)])
def test_autocast_with_a_wide_hidden(interpreted: Interpreted, name: str, hidden: int) -> None:
    """Four parts of 128 where the weights arrive in fp32 and are multiplied in 16 bits; the last one ragged or not."""
    interpreted(judge_autocast, name, hidden)


def judge_promotion(name: str) -> None:
    x, w, residual, skip, y = PROMOTED[name]
    tensors, dy = mixed_inputs(x, w, residual, 11)
    tensors["scale"] = torch.rand(1).to(BF16)
    assert judge(tensors, dy, skip=skip)["y"].dtype is y


@pytest.mark.parametrize("name", PROMOTED)
def test_promotion(interpreted: Interpreted, name: str) -> None:
    interpreted(judge_promotion, name)


def judge_wanted(wanted: tuple[str, ...]) -> None:
    tensors, dy = full(FP32, 19, 40, 12)
    everything = judge(tensors, dy, skip=True)
    for recompute in (False, True):
        some = evaluate(aim_fast.adapter, tensors, dy, skip=True, wanted=wanted, recompute=recompute)
        assert some.keys() == {"y", *(f"d{name}" for name in wanted)}
        for name, value in some.items():
            assert torch.equal(value, everything[name]), name


@pytest.mark.parametrize(
    "wanted",
    [*((name,) for name in TRAINABLE), ("w1", "b1", "w2", "b2"), ("x", "w2"), ("b1", "b2"), ("w1", "scale")],
    ids="+".join,
)
def test_only_what_is_wanted(interpreted: Interpreted, wanted: tuple[str, ...]) -> None:
    """Frozen tensors change no bit of the others' gradients."""
    interpreted(judge_wanted, wanted)


def check_nonfinite(activation: str) -> None:
    one, ones = torch.ones(1, 1), torch.ones(3, 1)
    tensors = {"x": torch.tensor([[NAN], [INF], [-INF]]), "w1": one, "b1": None, "w2": one, "b2": None}
    got = evaluate(aim_fast.adapter, tensors, ones, wanted=["x"], activation=activation)
    assert_same_positions(got, exact(tensors, ones, wanted=["x"], activation=activation))
    # An infinite dy comes through one hidden unit as it is, whatever pads H.
    got = evaluate(aim_fast.adapter, tensors | {"x": ones}, ones * INF, wanted=["x"], activation=activation)
    assert got["dx"].isposinf().all()
    for name, place, value in (("x", (2, 5), NAN), ("w1", (3, 7), INF), ("b2", 39, NAN), ("row_scale", 4, INF)):
        tensors, dy = full(FP32, 9, 40, 12)
        tensors[name][place] = value  # type: ignore[index]
        got = evaluate(aim_fast.adapter, tensors, dy, activation=activation, skip=True)
        assert_same_positions(got, exact(tensors, dy, activation=activation, skip=True))


@pytest.mark.parametrize("activation", aim_fast.ACTIVATIONS)
def test_nonfinite_positions(interpreted: Interpreted, activation: str) -> None:
    interpreted(check_nonfinite, activation)


def check_far_rows(M: int, stride: int) -> None:
    fill_new_memory(False)
    tensors, dy = full(FP16, M, 16, 8)
    near = judge(tensors, dy, skip=True)
    # zeros: memory that is not touched is not there either
    far = torch.zeros((M - 1) * stride + 16, dtype=FP16).as_strided((M, 16), (stride, 1))
    assert (M - 1) * stride > 2**31
    far.copy_(tensors["x"])
    got = evaluate(aim_fast.adapter, tensors | {"x": far, "residual": far}, dy, skip=True)
    expected = evaluate(aim_fast.adapter, tensors | {"residual": tensors["x"]}, dy, skip=True)
    for name, value in expected.items():
        assert torch.equal(got[name], value), name
    assert not torch.equal(got["y"], near["y"])
    fill_new_memory(True)


@pytest.mark.parametrize(("M", "stride"), [(6, 2**29), (1100, 2**21)], ids=["within_a_tile", "between_tiles"])
def test_rows_beyond_32_bits(interpreted: Interpreted, M: int, stride: int) -> None:
    interpreted(check_far_rows, M, stride)


def check_pointwise(activation: str) -> None:
    """act and act' themselves, as test_numerics.py judges the CPU's."""
    from activation_kernel import pointwise

    tiny = torch.logspace(-30, 0, 1000)
    z = torch.cat([torch.linspace(-12, 12, 6192), tiny, -tiny])
    h, again, slope = torch.empty(3, 8192).unbind()
    pointwise[(1,)](z, h, again, slope, ACT=activation)
    double = z.double().requires_grad_()
    truth = reference.activate(double, activation)
    (derivative,) = torch.autograd.grad(truth.sum(), double)
    assert torch.equal(h, again)
    # Some ten roundings; near zero that of the normal law's tail is one of 1/2 and not of its distance from it.
    assert ((h - truth.detach()).abs() <= z.abs() * 6e-7 + 1e-37).all()
    assert ((slope - derivative).abs() <= 2e-6).all()


@pytest.mark.parametrize("activation", aim_fast.ACTIVATIONS)
def test_activation_pointwise(interpreted: Interpreted, activation: str) -> None:
    interpreted(check_pointwise, activation)
