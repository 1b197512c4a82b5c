"""Mixed precision: dtypes that differ from argument to argument, and autocast, judged beside what users write."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import aim_fast
from aim_fast.reference import composition
from judge import BACKEND, DEVICE, Tensors, all_placed, assert_judged, evaluate, exact, judge, make_inputs, placed
from original import PAIRS, pair

FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
D, H = 72, 20
HALF = (BF16, FP16)
NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_CUDA)])
ROWS = pytest.mark.parametrize("rows", [61, 11], ids=["rows", "few_rows"])


def inputs(
    x: torch.dtype, w: torch.dtype, residual: torch.dtype | None, rows: int = 61, widths: tuple[int, int] = (D, H)
) -> tuple[Tensors, Tensor]:
    """Tensors of the given dtypes (their values the same in every dtype that is there), and dy. widths: D and H."""
    tensors = make_inputs((rows, widths[0]), widths[1], w)
    tensors["x"] = tensors["x"].to(BF16).to(x)
    generator = torch.Generator().manual_seed(1)
    other, dy = torch.randn(2, rows, widths[0], generator=generator).unbind()
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


def autocast_or_not(device: str, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    return nullcontext() if dtype is None else torch.autocast(device, dtype=dtype)


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
@pytest.mark.parametrize("forward", [BF16, None], ids=["of_autocast", "of_fp32"])
@pytest.mark.parametrize("backend", [BACKEND, "eager"])
def test_backward_ignores_the_autocast_of_its_time(
    cpu_library: None, backend: str, forward: torch.dtype | None, create_graph: bool
) -> None:
    """Whatever ran the forward; PyTorch's own functions would multiply in the dtype of the backward's autocast."""
    tensors, dy = inputs(FP32, FP32, FP32)
    leaves: Tensors = {name: t.requires_grad_() for name, t in all_placed(tensors).items()}
    grads = []
    for inside in (BF16, FP16, None):
        with autocast_or_not(DEVICE, forward), aim_fast.use_backend(backend):
            y = aim_fast.adapter(**leaves, skip=True)
        with autocast_or_not(DEVICE, inside):
            wrt = list(leaves.values())
            grads.append(torch.autograd.grad(y, wrt, placed(dy).to(y.dtype), create_graph=create_graph))
    for name, *of_each in zip(leaves, *grads, strict=True):
        assert torch.equal(of_each[0], of_each[2]), name
        assert torch.equal(of_each[1], of_each[2]), name


@pytest.mark.parametrize("recompute", [False, True], ids=["z_kept", "z_again"])
@pytest.mark.parametrize("through_y", [False, True], ids=["linear", "square"])
@pytest.mark.parametrize("name", ["x", "w1"])
def test_double_backward_under_autocast(fused: None, name: str, through_y: bool, recompute: bool) -> None:
    """A penalty on a gradient, through the x that is kept in half: as near to float64 as eager's."""
    tensors, _ = inputs(FP32, FP32, FP32)

    def penalty(function: Callable[..., Tensor], dtype: torch.dtype, **options: bool) -> dict[str, Tensor]:
        leaves: Tensors = {key: t.detach().to(dtype).requires_grad_() for key, t in all_placed(tensors).items()}
        y = function(**leaves, skip=True, **options)
        loss = y.square().sum() if through_y else y.sum()
        (first,) = torch.autograd.grad(loss, leaves[name], create_graph=True)
        grads = torch.autograd.grad(first.square().sum(), list(leaves.values()), allow_unused=True)
        return {key: g for key, g in zip(leaves, grads, strict=True) if g is not None and g.any()}

    eager, truth = penalty(under(BF16, users_code), FP32), penalty(users_code, FP64)
    assert_judged(penalty(under(BF16, aim_fast.adapter), FP32, recompute=recompute), eager, truth)


@DEVICES
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_dtypes_are_those_of_users_code(cpu_library: None, backend: str, device: str) -> None:
    """Every mixture of x, weights, residual, skip and autocast: y's dtype is eager's, each gradient's its tensor's.

    Without autocast nn.Linear refuses a mixture, and the composition says what is meant: the promotion.
    """
    dtypes = (FP32, BF16, FP16)
    for x, w, other, skip, autocast in product(dtypes, dtypes, (None, *dtypes), (False, True), (None, *HALF)):
        tensors, _ = inputs(x, w, other, rows=2)
        leaves: Tensors = {name: t.to(device).requires_grad_() for name, t in tensors.items()}
        users = users_code if autocast or x is w else composition
        with autocast_or_not(device, autocast), aim_fast.use_backend(backend):
            y = aim_fast.adapter(**leaves, skip=skip, scale=0.5)
            expected = users(**leaves, skip=skip, scale=0.5)
        grads = torch.autograd.grad(y.sum(), list(leaves.values()))
        assert y.dtype is expected.dtype, (x, w, other, skip, autocast)
        assert [g.dtype for g in grads] == [t.dtype for t in leaves.values()], (x, w, other, skip, autocast)


@DEVICES
@pytest.mark.parametrize("name", PAIRS)
def test_dtypes_of_modules(name: str, device: str) -> None:
    """`.half()`, `.bfloat16()` and fp32 modules: with and without autocast, AIM's own class gives the same dtypes."""
    for x, w, autocast in product((FP32, BF16, FP16), (FP32, BF16, FP16), (None, *HALF)):
        if autocast is None and x is not w:
            continue  # AIM's class refuses
        results = []
        for module in pair(name):
            module.to(device, w)
            value = torch.randn(3, 48, device=device).to(x).requires_grad_()
            with autocast_or_not(device, autocast):
                y = module(value)
            grads = torch.autograd.grad(y.sum(), [value, *module.parameters()])
            results.append([y.dtype, *(g.dtype for g in grads)])
        assert results[0] == results[1], (x, w, autocast)


def _hooked(adapter: Any) -> None:
    adapter.D_fc1.register_forward_hook(lambda linear, args, output: None)


@pytest.mark.parametrize("extra", ["scale", "row_scale", "residual"])
def test_a_hook_keeps_the_dtype(extra: str) -> None:
    """An fp32 gate or drop-path factor does not widen a half branch, fused or with the children run one by one."""
    ours, _ = pair("T_Adapter")
    given = {"scale": torch.ones(48), "row_scale": torch.ones(3), "residual": torch.ones(3, 48)}[extra]
    x = torch.randn(3, 48)
    with torch.autocast("cpu", BF16):
        fused = ours(x, **{extra: given})
        _hooked(ours)
        one_by_one = ours(x, **{extra: given})
    assert fused.dtype is one_by_one.dtype is (FP32 if extra == "residual" else BF16)


class Stream(nn.Module):
    """An fp32 residual stream through two adapters, as a transformer block runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(48)
        self.inner = aim_fast.Adapter(48, 0.5)
        self.tail = aim_fast.T_Adapter(48, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        return self.tail(self.norm(x), residual=x, scale=0.5)


def _train(backend: str, device: str, dtype: torch.dtype | None) -> tuple[Tensors, list[float]]:
    """Parameters after six steps with a GradScaler, the third with an inf, and the scaler's factor after each of them.

    Without dtype: float64 with no scaler, which leaves the third step out.
    """
    torch.manual_seed(0)
    model = Stream().to(device, FP32 if dtype else FP64)
    x, target = torch.randn(2, 64, 48, device=device).to(FP32 if dtype else FP64).unbind()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**12, growth_interval=2, enabled=dtype is not None)
    factors = []
    for step in range(6):
        if step == 2 and dtype is None:
            continue
        with autocast_or_not(device, dtype), aim_fast.use_backend(backend):
            y = model(x)
        assert y.dtype is x.dtype
        goal = target.clone()
        goal[7, 5] = float("inf") if step == 2 else goal[7, 5]
        optimizer.zero_grad()
        scaler.scale((y - goal).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        factors.append(scaler.get_scale())
    return {name: p.detach() for name, p in model.named_parameters()}, factors


@DEVICES
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_grad_scaler(cpu_library: None, dtype: torch.dtype, device: str) -> None:
    """An inf reaches the gradients, the step is skipped and the factor halved; the other steps are as without."""
    fused, factors = _train("auto", device, dtype)
    eager, _ = _train("eager", device, dtype)
    truth, _ = _train("eager", device, None)
    assert [factor / 2**12 for factor in factors] == [1, 2, 1, 1, 2, 2]
    assert_judged(fused, eager, truth)


@pytest.mark.parametrize("rows", [3, 40])
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_what_passes_by_the_products_is_not_rounded(isa: str, dtype: torch.dtype, rows: int) -> None:
    """With a branch of zero, an fp32 x and its gradient go through unchanged, though the products are in half."""
    tensors = all_placed(make_inputs((rows, D), H))
    x = placed(torch.randn(rows, D)).requires_grad_()
    dy = placed(torch.randn(rows, D))
    tensors["x"] = x
    with torch.autocast(DEVICE, dtype=dtype):
        y = aim_fast.adapter(**tensors, skip=True, scale=0.0)
    assert torch.equal(y, x)
    assert torch.equal(torch.autograd.grad(y, x, dy)[0], dy)
