"""Mixed precision: dtypes that differ from argument to argument, and autocast, judged beside what users write."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import aim_fast
from judge import DEVICE, Tensors, all_placed, assert_judged, evaluate, exact, judge, make_inputs, placed

FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
D, H = 72, 20
ROWS = pytest.mark.parametrize("rows", [61, 11], ids=["rows", "few_rows"])


def inputs(x: torch.dtype, w: torch.dtype, residual: torch.dtype | None, rows: int = 61) -> tuple[Tensors, Tensor]:
    """Tensors of the given dtypes (their values the same in every dtype that is there), and dy."""
    tensors = make_inputs((rows, D), H, w)
    tensors["x"] = tensors["x"].to(BF16).to(x)
    generator = torch.Generator().manual_seed(1)
    other, dy = torch.randn(2, rows, D, generator=generator).unbind()
    if residual is not None:
        tensors["residual"] = other.to(residual)
    return tensors, dy.to(BF16)


def users_code(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    skip: bool = False,
    residual: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    y = scale * F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)
    if skip:
        y = x + y
    return y if residual is None else residual + y


def under(autocast: torch.dtype, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """function inside autocast; the backward runs outside."""

    def run(**arguments) -> Tensor:
        with torch.autocast(DEVICE, dtype=autocast):
            return function(**arguments)

    return run


# x, weights, residual, autocast, skip -> y. With autocast the weights count for nothing, x and residual for their sum.
AUTOCAST = {
    "mlp_adapter": (FP32, FP32, FP32, BF16, False, FP32),
    "t_adapter_in": (FP32, FP32, None, BF16, True, FP32),
    "t_adapter": (BF16, FP32, None, BF16, False, BF16),
    "s_adapter": (BF16, FP32, None, BF16, True, BF16),
    "s_adapter_residual": (BF16, FP32, FP32, BF16, True, FP32),
    "no_tail": (FP32, FP32, None, BF16, False, BF16),
    "half_weights": (FP32, BF16, BF16, BF16, False, BF16),
    "mlp_adapter_fp16": (FP32, FP32, FP32, FP16, False, FP32),
    "s_adapter_fp16": (FP16, FP32, None, FP16, True, FP16),
    "fp32_skip_fp16": (FP32, FP16, FP16, FP16, True, FP32),
    "bf16_x_in_fp16": (BF16, FP32, None, FP16, False, FP16),
    "bf16_skip_in_fp16": (BF16, FP32, None, FP16, True, FP32),
}


@pytest.mark.parametrize(("x", "w", "residual", "autocast", "skip", "y"), AUTOCAST.values(), ids=AUTOCAST)
@ROWS
def test_autocast(isa: str, rows: int, x, w, residual, autocast, skip, y) -> None:
    tensors, dy = inputs(x, w, residual, rows)
    options = {"skip": skip, "scale": 0.5}
    fused = evaluate(under(autocast, aim_fast.adapter), tensors, dy, **options)
    eager = evaluate(under(autocast, users_code), tensors, dy, **options)
    assert fused["y"].dtype is y
    assert_judged(fused, eager, exact(tensors, dy, **options))


# x, weights, residual, skip -> y, without autocast: the products take the promotion of x and the weights.
PROMOTED = {
    "fp32_x_bf16_w": (FP32, BF16, None, False, FP32),
    "bf16_x_fp32_w": (BF16, FP32, None, True, FP32),
    "fp16_x_bf16_w": (FP16, BF16, None, True, FP32),
    "fp16_x_fp32_w": (FP16, FP32, FP16, False, FP32),
    "bf16_fp32_residual": (BF16, BF16, FP32, True, FP32),
    "bf16_fp16_residual": (BF16, BF16, FP16, False, FP32),
    "fp16_fp32_residual": (FP16, FP16, FP32, False, FP32),
    "fp32_bf16_residual": (FP32, FP32, BF16, False, FP32),
}


@pytest.mark.parametrize(("x", "w", "residual", "skip", "y"), PROMOTED.values(), ids=PROMOTED)
@ROWS
def test_promotion(isa: str, rows: int, x, w, residual, skip, y) -> None:
    tensors, dy = inputs(x, w, residual, rows)
    assert judge(tensors, dy, skip=skip)["y"].dtype is y


@pytest.mark.parametrize("name", ["w1", "b1", "w2", "b2", "scale", "row_scale"])
@pytest.mark.parametrize("other", [FP32, BF16, FP16], ids=str)
@pytest.mark.parametrize("rest", [FP32, BF16], ids=str)
@ROWS
def test_one_argument_of_another_dtype(
    fused: None, name: str, other: torch.dtype, rest: torch.dtype, rows: int
) -> None:
    tensors, dy = inputs(rest, rest, None, rows)
    generator = torch.Generator().manual_seed(2)
    tensors["scale"] = torch.randn(D, generator=generator).to(rest)
    tensors["row_scale"] = torch.rand(rows, generator=generator).to(rest)
    tensors[name] = tensors[name].to(other)
    judge(tensors, dy, skip=True)


def test_each_gradient_has_the_dtype_of_its_tensor(fused: None) -> None:
    tensors, dy = inputs(BF16, FP32, FP16)
    tensors["b1"] = tensors["b1"].half()
    tensors["scale"] = torch.ones(1)
    results = evaluate(under(BF16, aim_fast.adapter), tensors, dy, skip=True)
    expected = {"x": BF16, "w1": FP32, "b1": FP16, "w2": FP32, "b2": FP32, "residual": FP16, "scale": FP32}
    assert {name: results[f"d{name}"].dtype for name in expected} == expected


def test_double_is_left_alone_by_autocast(cpu_library: None) -> None:
    """float64 falls back to eager and keeps its precision, as nn.Linear does under autocast."""
    tensors, dy = inputs(FP64, FP64, None)
    results = evaluate(under(BF16, aim_fast.adapter), tensors, dy, skip=True)
    for name, value in exact(tensors, dy, skip=True).items():
        torch.testing.assert_close(results[name], value)


@pytest.mark.parametrize("create_graph", [False, True], ids=["backward", "create_graph"])
def test_backward_ignores_the_autocast_of_its_time(fused: None, create_graph: bool) -> None:
    tensors, dy = inputs(FP32, FP32, FP32)
    leaves: Tensors = {name: t.requires_grad_() for name, t in all_placed(tensors).items()}
    grads = []
    for inside in (BF16, FP16, None):
        with torch.autocast(DEVICE, dtype=BF16):
            y = aim_fast.adapter(**leaves, skip=True)
        with nullcontext() if inside is None else torch.autocast(DEVICE, dtype=inside):
            grads.append(
                torch.autograd.grad(y, list(leaves.values()), placed(dy).to(y.dtype), create_graph=create_graph)
            )
    for name, *of_each in zip(leaves, *grads, strict=True):
        assert torch.equal(of_each[0], of_each[2]), name
        assert torch.equal(of_each[1], of_each[2]), name


def test_double_backward_under_autocast(fused: None) -> None:
    """A gradient penalty through the x that is kept in half: as near to float64 as eager's."""
    tensors, _ = inputs(FP32, FP32, FP32)

    def penalty(function: Callable[..., Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        leaves: Tensors = {name: t.detach().to(dtype).requires_grad_() for name, t in all_placed(tensors).items()}
        y = function(**leaves, skip=True)
        (dx,) = torch.autograd.grad(y.square().sum(), leaves["x"], create_graph=True)
        grads = torch.autograd.grad(dx.square().sum(), list(leaves.values()))
        return dict(zip(leaves, grads, strict=True))

    eager, truth = penalty(under(BF16, users_code), FP32), penalty(users_code, FP64)
    assert_judged(penalty(under(BF16, aim_fast.adapter), FP32), eager, truth)
