"""The composition beside torch's own functions; the explicit forward and backward beside autograd, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo import compiled_autograd

import aim_fast
from aim_fast import reference
from judge import TRAINABLE, Tensors, evaluate, make_inputs

# Written a second time, by hand, so that a slip in the composition cannot be on both sides of every other test.
BY_HAND = {
    "gelu": lambda z: 0.5 * z * (1 + torch.erf(z / 2**0.5)),
    "gelu_tanh": lambda z: 0.5 * z * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3))),
    "quick_gelu": lambda z: z / (1 + torch.exp(-1.702 * z)),
    "relu": lambda z: z.clamp(min=0),
    "silu": lambda z: z / (1 + torch.exp(-z)),
    "tanh": lambda z: (torch.exp(2 * z) - 1) / (torch.exp(2 * z) + 1),
    "leaky_relu": lambda z: torch.where(z < 0, 0.01 * z, z),
    "identity": lambda z: 1.0 * z,
}


def inputs(seed: int = 0) -> Tensors:
    tensors = make_inputs((3, 5, 12), 6, torch.float64, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    tensors["scale"] = torch.randn(12, generator=generator, dtype=torch.float64)
    tensors["row_scale"] = torch.rand(3, 1, generator=generator, dtype=torch.float64)
    tensors["residual"] = torch.randn(3, 5, 12, generator=generator, dtype=torch.float64)
    return tensors


def test_names() -> None:
    """The public list, in the order that the kernels number them by."""
    assert tuple(BY_HAND) == aim_fast.ACTIVATIONS


@pytest.mark.parametrize("activation", BY_HAND)
@pytest.mark.parametrize("skip", [False, True])
def test_composition(activation: str, skip: bool) -> None:
    t = inputs()
    z = torch.einsum("abd,hd->abh", t["x"], t["w1"]) + t["b1"]
    f = torch.einsum("abh,dh->abd", BY_HAND[activation](z), t["w2"]) + t["b2"]
    y = t["scale"] * t["row_scale"][:, :, None] * f + t["residual"]
    got = reference.composition(**t, activation=activation, skip=skip)
    torch.testing.assert_close(got, y + t["x"] if skip else y)


@pytest.mark.parametrize("skip", [False, True])
def test_composition_is_aims_module(skip: bool) -> None:
    """The same bits as the calls of AIM's class, in the dtype it runs in."""
    down, up = nn.Linear(24, 6), nn.Linear(6, 24)
    x = torch.randn(7, 24)
    f = up(F.gelu(down(x)))
    got = reference.composition(x, down.weight, down.bias, up.weight, up.bias, activation="gelu", skip=skip)
    assert torch.equal(got, x + f if skip else f)


@pytest.mark.parametrize("activation", BY_HAND)
@pytest.mark.parametrize("lacks", ["nothing", "biases", "scale", "row_scale", "z", "one_scale"])
def test_explicit_gradients(activation: str, lacks: str) -> None:
    """`forward` and `backward`, the formulas behind the two ops, are the composition and its autograd."""
    t = inputs()
    if lacks == "biases":
        t["b1"] = t["b2"] = None
    elif lacks in ("scale", "row_scale"):
        t[lacks] = None
    elif lacks == "one_scale":
        t["scale"] = torch.tensor([0.7], dtype=torch.float64)
    given = {name: value for name, value in t.items() if value is not None or name in ("b1", "b2")}
    dy = torch.randn(3, 5, 12, dtype=torch.float64)
    truth = evaluate(reference.composition, given, dy, activation=activation, skip=True)
    weights = (t["w1"], t["b1"], t["w2"], t["b2"], t["scale"], t["row_scale"])
    call = (activation, True, 1.0, torch.float64)
    y, z = reference.forward(t["x"], *weights, t["residual"], *call)
    torch.testing.assert_close(y, truth["y"])
    kept = None if lacks == "z" else z
    grads = reference.backward(dy, t["x"], kept, *weights, *call, torch.float64, [True] * 6)
    for name, grad in zip(("x", "w1", "b1", "w2", "b2", "scale"), grads, strict=True):
        if t[name] is None:
            assert grad is None, name
        else:
            torch.testing.assert_close(grad, truth[f"d{name}"], msg=f"d{name} is wrong")


@pytest.mark.parametrize("wanted", range(7))
def test_explicit_gradients_only_as_asked(wanted: int) -> None:
    """One at a time, x and z given only where it needs them; the last of the range asks for nothing."""
    t = inputs()
    needs = [i == wanted for i in range(6)]
    weights = (t["w1"], t["b1"], t["w2"], t["b2"], t["scale"], t["row_scale"])
    x = t["x"] if wanted == 1 else None
    z = reference.preactivation(t["x"], t["w1"], t["b1"], torch.float64) if wanted in (0, 1, 2, 3, 5) else None
    dtype = torch.float64
    grads = reference.backward(t["residual"], x, z, *weights, "gelu", True, 2.0, dtype, dtype, needs)
    assert [grad is not None for grad in grads] == needs


def test_alpha_is_the_float_scale() -> None:
    t = inputs()
    t["scale"] = None
    weights = (t["w1"], t["b1"], t["w2"], t["b2"], None, t["row_scale"])
    call = ("gelu", False, -0.3, torch.float64)
    y, z = reference.forward(t["x"], *weights, None, *call)
    tensors = {name: t[name] for name in ("x", "w1", "b1", "w2", "b2", "row_scale")}
    dy = torch.randn(3, 5, 12, dtype=torch.float64)
    truth = evaluate(reference.composition, tensors, dy, activation="gelu", scale=-0.3)
    torch.testing.assert_close(y, truth["y"])
    needs = [True] * 5 + [False]
    grads = reference.backward(dy, t["x"], z, *weights, *call, torch.float64, needs)
    for name, grad in zip(TRAINABLE[:5], grads, strict=False):
        torch.testing.assert_close(grad, truth[f"d{name}"])


@pytest.mark.parametrize("activation", BY_HAND)
def test_second_derivative(activation: str) -> None:
    """The gradient of an activation is itself differentiable: double backward stands on it."""
    z = torch.linspace(-3, 3, 24, dtype=torch.float64).requires_grad_()
    (first,) = torch.autograd.grad(BY_HAND[activation](z).sum(), z, create_graph=True)
    dh = torch.ones_like(z)
    ours = reference._FUNCTIONS[activation].gradient(dh, z)
    torch.testing.assert_close(ours, first)
    if first.requires_grad and activation not in ("relu", "leaky_relu", "identity"):
        second, ours = (torch.autograd.grad(value.sum(), z)[0] for value in (first, ours))
        torch.testing.assert_close(ours, second)


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ([torch.bfloat16, None, torch.bfloat16], torch.bfloat16),
        ([torch.bfloat16, torch.float16], torch.float32),
        ([torch.float16, torch.float32, None], torch.float32),
        ([torch.float32, torch.float64], torch.float64),
    ],
    ids=str,
)
def test_promoted(dtypes: list[torch.dtype | None], expected: torch.dtype) -> None:
    assert reference.promoted(*(None if d is None else torch.empty(1, dtype=d) for d in dtypes)) is expected


ROWS = {
    "vector": lambda: torch.randn(12),
    "rows": lambda: torch.randn(7, 12),
    "batches": lambda: torch.randn(2, 3, 12),
    "strided_rows": lambda: torch.randn(3, 2, 12).transpose(0, 1),
    "strided_columns": lambda: torch.randn(12, 7).t(),
    "none": lambda: torch.randn(0, 3, 12),
}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("rows", ROWS)
def test_backward_of_the_composition(rows: str, bias: bool, seed: None) -> None:
    """The gradients of torch's own functions; the same bits in autocast, which is on again for the nodes around."""
    found: list[bool] = []

    class Between(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Tensor:
            found.append(torch.is_autocast_enabled("cpu"))
            return dy

    x, w1, w2 = ROWS[rows](), torch.randn(6, 12), torch.randn(12, 6)
    b1, b2 = (torch.randn(6), torch.randn(12)) if bias else (None, None)
    leaves = [t.requires_grad_() for t in (x, w1, w2, b1, b2) if t is not None]
    dy = torch.randn(x.shape)
    grads = []
    for on in (False, True):
        y = Between.apply(reference.composition(Between.apply(x), w1, b1, w2, b2, skip=True))
        found.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            grads.append(torch.autograd.grad(y, leaves, dy))
            assert found == [on, on]
            assert torch.is_autocast_enabled("cpu") is on
    plain = torch.autograd.grad(x + F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2), leaves, dy)
    for one, other, expected in zip(*grads, plain, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, expected)


def test_compiled_autograd(seed: None) -> None:
    """It traces the hooks of the composition, which leave the autocast state of the nodes around alone."""
    x, outer = torch.randn(7, 12), torch.randn(12, 12, requires_grad=True)
    w1, w2 = torch.randn(6, 12, requires_grad=True), torch.randn(12, 6, requires_grad=True)
    y = reference.composition(x @ outer, w1, None, w2, None)
    plain = F.linear(F.gelu(F.linear(x @ outer, w1)), w2)
    with torch.autocast("cpu", torch.bfloat16):
        with compiled_autograd._enable(lambda graph: torch.compile(graph, backend="eager", fullgraph=True)):
            (traced,) = torch.autograd.grad(y, [outer], torch.ones_like(y), retain_graph=True)
        (expected,) = torch.autograd.grad(plain, [outer], torch.ones_like(y))
    assert torch.equal(traced, expected)
    assert torch.equal(traced, traced.bfloat16().float())  # the product with x was in half
