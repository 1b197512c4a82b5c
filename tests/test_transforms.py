"""torch.func and its kin: every transform beside plain loops in float64, alone, nested, compiled, through modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd import functional as loops
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, stack_module_state, vjp, vmap

import aim_fast
from aim_fast.reference import composition
from judge import Tensors, assert_judged, make_inputs

pytestmark = pytest.mark.usefixtures("cpu_library")

FP32, FP64 = torch.float32, torch.float64
NAMES = ("x", "w1", "b1", "w2", "b2", "scale", "residual", "row_scale")


def inputs(shape: tuple[int, ...] = (3, 5, 6), H: int = 4, seed: int = 0) -> Tensors:
    """Every tensor argument, in float32."""
    generator = torch.Generator().manual_seed(seed + 1)
    tensors = make_inputs(shape, H, seed=seed)
    tensors["scale"] = torch.randn(shape[-1], generator=generator)
    tensors["residual"] = torch.randn(shape, generator=generator)
    tensors["row_scale"] = torch.rand(shape[:-1], generator=generator)
    return tensors


def of(name: str, function: Callable[..., Tensor], tensors: Tensors) -> Callable[[Tensor], Tensor]:
    """The operator as a function of one argument, the others fixed."""
    return lambda value: function(**{**tensors, name: value}, skip=True)


def squared(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda value: f(value).square().sum()


def _forward_ad(f: Callable[[Tensor], Tensor], at: Tensor) -> Any:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(at, at.cos()))).tangent


def _batched_gradients(f: Callable[[Tensor], Tensor], at: Tensor) -> Any:
    """The whole Jacobian by one backward over a batch of dy, on the graph that the kernel itself made."""
    at = at.detach().requires_grad_()
    y = f(at)
    basis = torch.eye(y.numel(), dtype=y.dtype).view(-1, *y.shape)
    return torch.autograd.grad(y, at, basis, is_grads_batched=True)[0].view(*y.shape, *at.shape)


# name: (the transform, the same by plain autograd in loops)
TRANSFORMS: dict[str, tuple[Callable, Callable]] = {
    "grad": (lambda f, at: grad(squared(f))(at), lambda f, at: loops.vjp(squared(f), at)[1]),
    "vjp": (lambda f, at: vjp(f, at)[1](f(at).sin())[0], lambda f, at: loops.vjp(f, at, f(at).sin())[1]),
    "jacrev": (lambda f, at: jacrev(f)(at), lambda f, at: loops.jacobian(f, at)),
    "jacfwd": (lambda f, at: jacfwd(f)(at), lambda f, at: loops.jacobian(f, at)),
    "batched_gradients": (_batched_gradients, lambda f, at: loops.jacobian(f, at)),
    "jvp": (lambda f, at: jvp(f, (at,), (at.cos(),))[1], lambda f, at: loops.jvp(f, at, at.cos())[1]),
    "linearize": (lambda f, at: linearize(f, at)[1](at.cos()), lambda f, at: loops.jvp(f, at, at.cos())[1]),
    "forward_ad": (_forward_ad, lambda f, at: loops.jvp(f, at, at.cos())[1]),
    "hessian": (lambda f, at: hessian(squared(f))(at), lambda f, at: loops.hessian(squared(f), at)),
    "reverse_twice": (lambda f, at: jacrev(grad(squared(f)))(at), lambda f, at: loops.hessian(squared(f), at)),
    "reverse_of_forward": (
        lambda f, at: grad(lambda v: jvp(squared(f), (v,), (at.cos(),))[1])(at),
        lambda f, at: loops.hvp(squared(f), at, at.cos())[1],
    ),
}


@pytest.mark.parametrize("name", NAMES[:-1])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_derivative(transform: str, name: str) -> None:
    tensors = inputs((2, 2, 4), 3)
    ours, plain = TRANSFORMS[transform]
    doubles = {key: t.double() for key, t in tensors.items()}
    got, eager = (ours(of(name, f, tensors), tensors[name]) for f in (aim_fast.adapter, composition))
    truth = plain(of(name, composition, doubles), doubles[name])
    assert_judged({"result": got}, {"result": eager}, {"result": truth})


# What is batched at once: each argument alone, the weights of an ensemble, everything.
BATCHED = [*((name,) for name in NAMES), ("w1", "b1", "w2", "b2"), NAMES]


@pytest.mark.parametrize("names", BATCHED, ids="+".join)
def test_vmap(names: tuple[str, ...]) -> None:
    """in_dims on any arguments: y, and the gradients of a sum over the batch, as the loop gives them."""
    members = [inputs(seed=seed) for seed in range(3)]
    # The batch is the last dimension of x and the first one of the others.
    in_dims = tuple((-1 if name == "x" else 0) if name in names else None for name in NAMES)
    values = tuple(
        torch.stack([m[name] for m in members], dim) if dim is not None else members[0][name]
        for name, dim in zip(NAMES, in_dims, strict=True)
    )

    def call(*arguments: Tensor) -> Tensor:
        named: Tensors = dict(zip(NAMES, arguments, strict=True))
        return aim_fast.adapter(**named, skip=True)

    def loop(function: Callable, dtype: torch.dtype) -> Iterator[Tensor]:
        for i in range(3):
            member = {name: members[i if name in names else 0][name].to(dtype) for name in NAMES}
            yield function(**member, skip=True)

    eager, truth = (torch.stack(list(loop(composition, dtype))) for dtype in (FP32, FP64))
    assert_judged({"y": vmap(call, in_dims)(*values)}, {"y": eager}, {"y": truth})


def test_gradients_of_each_sample() -> None:
    """vmap of grad over the rows, the weights shared: one gradient a sample, summing to the whole batch's."""
    tensors = inputs((5, 4, 6))
    weights = {name: tensors[name] for name in ("w1", "b1", "w2", "b2")}

    def loss(weights: Tensors, x: Tensor, function: Callable[..., Tensor] = aim_fast.adapter) -> Tensor:
        return function(x, **weights, skip=True).square().sum()

    each = vmap(grad(loss), (None, 0))(weights, tensors["x"])
    doubles: Tensors = {name: t.double() for name, t in weights.items()}

    def loop(weights: Tensors, xs: Tensor) -> Tensors:
        rows = [grad(lambda w, x=x: loss(w, x, composition))(weights) for x in xs]
        return {name: torch.stack([row[name] for row in rows]) for name in weights}

    assert_judged(each, loop(weights, tensors["x"]), loop(doubles, tensors["x"].double()))


@pytest.mark.parametrize("compiled", [False, True])
def test_ensemble_of_modules(compiled: bool) -> None:
    """stack_module_state and functional_call: K adapters trained at once, each as if it were alone."""
    torch.manual_seed(0)
    models = [aim_fast.Adapter(8) for _ in range(3)]
    x = torch.randn(5, 8)
    weights, buffers = stack_module_state(models)

    def loss(weights: Tensors, buffers: Tensors, x: Tensor) -> Tensor:
        return functional_call(models[0], (weights, buffers), (x,)).square().sum()

    together = vmap(grad(loss), (0, 0, None))
    if compiled:
        together = torch.compile(together, fullgraph=True, backend="aot_eager")
    got = together(weights, buffers, x)
    for i, model in enumerate(models):
        alone, exact = (dict(zip(got, _gradients(model.to(dtype), x.to(dtype)), strict=True)) for dtype in (FP32, FP64))
        assert_judged({name: g[i] for name, g in got.items()}, alone, exact)


def _gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    with aim_fast.use_backend("eager"):
        return list(torch.autograd.grad(model(x).square().sum(), list(model.parameters())))


@pytest.mark.parametrize("transform", ["grad", "jvp", "jacrev", "hessian"])
def test_compiled(transform: str) -> None:
    """A transform inside torch.compile is seen while tracing, and the kernel, which has no rule for it, not used."""
    tensors = inputs((2, 2, 4), 3)
    doubles = {key: t.double() for key, t in tensors.items()}
    ours, plain = TRANSFORMS[transform]
    compiled = torch.compile(
        lambda at: ours(of("x", aim_fast.adapter, tensors), at), fullgraph=True, backend="aot_eager"
    )
    got, eager = compiled(tensors["x"]), ours(of("x", composition, tensors), tensors["x"])
    truth = plain(of("x", composition, doubles), doubles["x"])
    assert_judged({"result": got}, {"result": eager}, {"result": truth})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast(dtype: torch.dtype) -> None:
    """The transforms keep the rule of mixed precision: products in autocast's dtype, gradients in each tensor's own."""
    tensors = inputs((3, 5, 16), 8)
    doubles = {name: t.double() for name, t in tensors.items()}
    dx = {name: grad(squared(of("x", composition, values))) for name, values in (("fp32", tensors), ("fp64", doubles))}
    with torch.autocast("cpu", dtype):
        got = grad(squared(of("x", aim_fast.adapter, tensors)))(tensors["x"])
        each = vmap(grad(squared(lambda x: aim_fast.adapter(**{name: tensors[name] for name in NAMES[1:6]}, x=x))))
        assert each(tensors["x"]).dtype is FP32
    halves = {name: t.to(dtype) for name, t in tensors.items()}
    eager = grad(squared(of("x", composition, halves)))(halves["x"]).float()
    assert got.dtype is FP32
    assert not torch.equal(got, dx["fp32"](tensors["x"]))
    assert_judged({"dx": got}, {"dx": eager}, {"dx": dx["fp64"](doubles["x"])})
