"""`adapter()`: which gradients, what aliases what, zero weights, float64, and derivatives of every order and kind."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import aim_fast
from aim_fast.reference import composition
from judge import BACKEND, DEVICE, TRAINABLE, Tensors, all_placed, assert_judged, evaluate, exact, make_inputs

FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
DTYPES = pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)


def inputs(dtype: torch.dtype = FP32, shape: tuple[int, ...] = (3, 11, 40), H: int = 12) -> Tensors:
    """Every tensor that may have a gradient."""
    generator = torch.Generator().manual_seed(1)
    tensors = make_inputs(shape, H, dtype)
    tensors["residual"] = torch.randn(shape, generator=generator).to(dtype)
    tensors["scale"] = torch.randn(shape[-1], generator=generator).to(dtype)
    return all_placed(tensors)


def output_gradient(tensors: Tensors) -> Tensor:
    return torch.randn(tensors["x"].shape, generator=torch.Generator().manual_seed(2)).to(tensors["x"])


SUBSETS = [set(names) for size in (0, 1, 2, 6, 7) for names in combinations(TRAINABLE, size)]


@pytest.mark.parametrize("shape", [(3, 11, 40), (3, 1, 40)], ids=["many", "few"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("wanted", SUBSETS, ids=lambda names: "+".join(sorted(names)) or "none")
def test_gradients_as_asked(fused: None, wanted: set[str], recompute: bool, shape: tuple[int, ...]) -> None:
    """Each subset: those asked for are right, the others None."""
    tensors = inputs(shape=shape)
    dy = output_gradient(tensors)
    leaves = {name: t.clone().requires_grad_(name in wanted) for name, t in tensors.items()}
    y = aim_fast.adapter(**leaves, skip=True, recompute=recompute)
    assert y.requires_grad == bool(wanted)
    if not wanted:
        return
    y.backward(dy)
    assert {name for name, t in leaves.items() if t.grad is not None} == wanted
    got = {"y": y.detach()} | {f"d{name}": leaves[name].grad for name in TRAINABLE if name in wanted}
    eager = evaluate(composition, tensors, dy, wanted=wanted, skip=True)
    assert_judged(got, eager, exact(tensors, dy, wanted=wanted, skip=True))


@DTYPES
@pytest.mark.parametrize("rows", [263, 197, 7])
def test_recompute_keeps_the_results(isa: str, dtype: torch.dtype, rows: int) -> None:
    """The same y to the bit; gradients of z as it was before rounding, so within the budget."""
    tensors = inputs(dtype, (rows, 96), 24)
    dy = output_gradient(tensors)
    kept, again = (evaluate(aim_fast.adapter, tensors, dy, recompute=flag) for flag in (False, True))
    assert torch.equal(kept["y"], again["y"])
    assert_judged(again, evaluate(composition, tensors, dy), exact(tensors, dy))


@pytest.mark.parametrize("backend", [BACKEND, "eager"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference"])
def test_no_graph(cpu_library: None, backend: str, context) -> None:
    tensors = {name: t.requires_grad_() for name, t in inputs().items()}
    with aim_fast.use_backend(backend):
        graph = aim_fast.adapter(**tensors)
        with context():
            y = aim_fast.adapter(**tensors)
    assert not y.requires_grad
    assert torch.equal(y, graph)


def _overlap(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


@DTYPES
@pytest.mark.parametrize("backend", [BACKEND, "eager"])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("shape", [(7, 13, 96), (5, 96)], ids=["rows", "few_rows"])
def test_zero_branch(cpu_library: None, backend: str, dtype: torch.dtype, skip: bool, shape: tuple[int, ...]) -> None:
    """AIM's start: w2 = b2 = 0. y is x bit for bit, or exactly 0, and a tensor of its own either way."""
    tensors = all_placed(make_inputs(shape, 24, dtype))
    tensors["w2"].zero_()
    tensors["b2"].zero_()
    x = tensors["x"]
    assert x is not None
    with aim_fast.use_backend(backend):
        y = aim_fast.adapter(**tensors, skip=skip)
    assert torch.equal(y, x if skip else torch.zeros_like(x))
    assert not _overlap(y, x)


@pytest.mark.parametrize("backend", [BACKEND, "eager"])
@pytest.mark.parametrize("shape", [(5, 40), (0, 40), (40,)], ids=str)
@pytest.mark.parametrize("options", [{}, {"skip": True}, {"scale": 0.0}, {"activation": "identity"}], ids=str)
def test_y_is_free_to_write(cpu_library: None, backend: str, shape: tuple[int, ...], options: dict) -> None:
    """Users write into y in place: no argument changes, and the backward does not notice."""
    tensors = inputs(shape=shape)
    residual = tensors.pop("residual")
    tensors.pop("scale")
    before = {name: t.clone() for name, t in tensors.items()}
    dy = output_gradient(tensors)
    with aim_fast.use_backend(backend):
        expected = evaluate(aim_fast.adapter, tensors, dy, residual=residual, **options)
        leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
        y = aim_fast.adapter(**leaves, residual=residual, **options)
    assert not any(_overlap(y, t) for t in (*leaves.values(), residual) if t.numel())
    z = y.mul_(2.0)
    grads = torch.autograd.grad(z, list(leaves.values()), dy / 2)
    for name, grad in zip(leaves, grads, strict=True):
        assert torch.equal(grad, expected[f"d{name}"]), name
        assert torch.equal(tensors[name], before[name]), name


def test_changed_input_is_noticed(fused: None) -> None:
    """What the backward needs may not change in between: autograd's version counters see it, as for any PyTorch op."""
    tensors = {name: t.requires_grad_() for name, t in inputs().items()}
    y = aim_fast.adapter(**tensors)
    with torch.no_grad():
        tensors["x"].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_gradients_accumulate_and_graph_is_retained(fused: None) -> None:
    tensors = {name: t.requires_grad_() for name, t in inputs().items()}
    y = aim_fast.adapter(**tensors, skip=True)
    dy = output_gradient(tensors)
    y.backward(dy, retain_graph=True)
    once = {name: t.grad.clone() for name, t in tensors.items()}
    y.backward(dy)
    for name, t in tensors.items():
        assert torch.equal(t.grad, 2 * once[name]), name


def test_one_tensor_in_two_places(fused: None) -> None:
    """x as its own residual, w2 = w1.T: each gradient is the sum of both uses."""
    square = all_placed(make_inputs((9, 16), 16, FP32))

    def tied(function, x: Tensor, w: Tensor) -> Tensor:
        return function(x, w, None, w, None, activation="silu", residual=x)

    x, w = (square[name].requires_grad_() for name in ("x", "w1"))
    got = torch.autograd.grad(tied(aim_fast.adapter, x, w).square().sum(), (x, w))
    truth = torch.autograd.grad(tied(composition, x, w).square().sum(), (x, w))
    for ours, theirs in zip(got, truth, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("activation", aim_fast.ACTIVATIONS)
@pytest.mark.parametrize("skip", [False, True])
def test_gradcheck(activation: str, skip: bool) -> None:
    tensors = {name: t.requires_grad_() for name, t in inputs(FP64, (2, 3, 5), 4).items()}
    row_scale = torch.tensor([[0.0], [1.25]], dtype=FP64, device=DEVICE)

    def call(*values: Tensor) -> Tensor:
        arguments: Tensors = dict(zip(tensors, values, strict=True))
        return aim_fast.adapter(**arguments, activation=activation, skip=skip, row_scale=row_scale)

    assert torch.autograd.gradcheck(call, tuple(tensors.values()), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, tuple(tensors.values()))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("activation", aim_fast.ACTIVATIONS)
@pytest.mark.parametrize("wanted", [TRAINABLE, ("x",), ("w2",), ("x", "scale")], ids="+".join)
def test_double_backward(fused: None, activation: str, recompute: bool, wanted: tuple[str, ...]) -> None:
    """Gradients of a gradient penalty through the kernel's forward, beside the composition's in float64."""
    tensors = inputs(FP32)

    def penalty(function, dtype: torch.dtype, **options) -> list[Tensor]:
        leaves = {name: t.to(dtype).requires_grad_(name in wanted) for name, t in tensors.items()}
        y = function(**leaves, activation=activation, skip=True, **options)
        trained = [leaves[name] for name in wanted]
        first = torch.autograd.grad(y.square().sum(), trained, create_graph=True)
        return list(torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), trained))

    got = penalty(aim_fast.adapter, FP32, recompute=recompute)
    eager, truth = penalty(composition, FP32), penalty(composition, FP64)
    assert_judged(*(dict(zip(wanted, values, strict=True)) for values in (got, eager, truth)))


def test_torch_func(cpu_library: None) -> None:
    """vmap over x and over weights, jvp, grad and their nesting: through the composition, the automatic choice."""
    t = inputs()

    def call(x: Tensor, w1: Tensor) -> Tensor:
        return aim_fast.adapter(x, w1, t["b1"], t["w2"], t["b2"], skip=True)

    def plain(x: Tensor, w1: Tensor) -> Tensor:
        return composition(x, w1, t["b1"], t["w2"], t["b2"], skip=True)

    x, w1 = t["x"], t["w1"]
    weights = torch.stack([w1, -w1])
    close = torch.testing.assert_close
    close(torch.func.vmap(call, (0, None))(x, w1), plain(x, w1))
    close(torch.func.vmap(call, (None, 0))(x, weights), torch.stack([plain(x, w) for w in weights]))
    close(*(torch.func.jvp(f, (x, w1), (w1.new_ones(x.shape), w1)) for f in (call, plain)))
    close(*(torch.func.grad(lambda x, w, f=f: f(x, w).sum())(x, w1) for f in (call, plain)))
    close(*(torch.func.vmap(torch.func.grad(lambda x, f=f: f(x, w1).sum()))(x) for f in (call, plain)))
    with forward_ad.dual_level():
        duals = (forward_ad.unpack_dual(f(forward_ad.make_dual(x, x), w1)).tangent for f in (call, plain))
        close(*duals)


def test_torch_func_names_its_limit(fused: None) -> None:
    """Under a forced kernel, that cannot: an error that says so, and nothing silently eager."""
    t = all_placed(make_inputs((4, 8), 2))
    with pytest.raises(ValueError, match=r"torch\.func"):
        torch.func.vmap(lambda x: aim_fast.adapter(x, t["w1"], t["b1"], t["w2"], t["b2"]))(t["x"])
