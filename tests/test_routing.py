"""The way from a call to a kernel: straight where nobody looks on, through the operator where somebody may."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import aim_fast
from aim_fast import dispatch, ops, routing
from aim_fast.dispatch import Backend
from judge import Tensors, make_inputs

# What runs a check is a process in which the operators of CPU tensors are routed, as those of CUDA tensors elsewhere.
FORWARD, BACKWARD = torch.ops.aim_fast.adapter_forward, torch.ops.aim_fast.adapter_backward


@contextmanager
def noted() -> Iterator[list[str]]:
    """A backend whose kernels are the composition; each leaves "straight" or "operator", the way it was reached."""
    ways: list[str] = []

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            ways.append("operator" if routing._said.backend else "straight")
            return function(*arguments)

        return run

    row = Backend("cuda", "played", ())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(routing._FORWARD, "cuda", noting(ops._forward_reference))
        patch.setitem(routing._BACKWARD, "cuda", noting(ops._backward_reference))
        patch.setattr(dispatch, "backends", lambda: (row, aim_fast.backends()[-1]))
        with aim_fast.use_backend("cuda"):
            yield ways


def inputs(grad: bool = True) -> Tensors:
    return make_inputs((7, 24), 8, requires_grad=grad)


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func.overloadpacket)
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Wrapped(Tensor):
    """A class of others, which sees its operators."""


def check_straight() -> None:
    """A train step, inference of tensors that require grad and of such that do not, and inference tensors."""
    for context, given in (
        (torch.no_grad(), inputs()),
        (nullcontext(), inputs(False)),
        (torch.inference_mode(), inputs(False)),
        (torch.autocast("cpu", torch.bfloat16), inputs(False)),
    ):
        with noted() as ways, context:
            y = aim_fast.adapter(**given, skip=True)
            assert ways == ["straight"]
        assert not y.requires_grad
    with noted() as ways:
        aim_fast.adapter(**inputs()).sum().backward()
        assert ways == ["straight", "straight"]


def check_modes() -> None:
    with noted() as ways, Seen() as mode:
        aim_fast.adapter(**inputs()).sum().backward()
        assert ways == ["operator", "operator"]
    assert [op for op in mode.seen if op in (FORWARD, BACKWARD)] == [FORWARD, BACKWARD]
    with noted() as ways, Functions(), torch.no_grad():
        aim_fast.adapter(**inputs())
        assert ways == ["operator"]
    with noted() as ways, torch.no_grad():
        aim_fast.adapter(**inputs())
        with Seen():
            aim_fast.adapter(**inputs())
        aim_fast.adapter(**inputs())
        assert ways == ["straight", "operator", "straight"]


def check_profiler() -> None:
    with noted() as ways, torch.profiler.profile() as profile:
        aim_fast.adapter(**inputs()).sum().backward()
        assert ways == ["operator", "operator"]
    names = {event.key for event in profile.key_averages()}
    assert {"aim_fast::adapter_forward", "aim_fast::adapter_backward"} <= names


def check_other_classes() -> None:
    """Any of the tensors may be the one."""
    for name in ("x", "w1", "b1", "w2", "b2"):
        with noted() as ways, torch.no_grad():
            given = inputs(False)
            given[name] = given[name].as_subclass(Wrapped)
            aim_fast.adapter(**given)
            assert ways == ["operator"], name
    with noted() as ways, torch.no_grad():
        given = {name: torch.nn.Parameter(t) for name, t in inputs(False).items()}
        aim_fast.adapter(**given)
        assert ways == ["straight"]


def check_negative_views() -> None:
    """Of a conjugate's imaginary part: memory holds the opposite numbers."""
    given = inputs(False)
    part = torch.complex(torch.zeros(7, 24), given["x"]).conj().imag
    assert part.is_neg()
    with noted() as ways, torch.no_grad():
        y = aim_fast.adapter(**{**given, "x": part})
        assert ways == ["operator"]
        assert torch.equal(y, aim_fast.adapter(**{**given, "x": -given["x"]}))


def check_tracers() -> None:
    given = list(inputs(False).values())
    with noted(), torch.no_grad():
        traced = torch.jit.trace(lambda *tensors: aim_fast.adapter(*tensors), given, check_trace=False)
    assert "aim_fast::adapter_forward" in str(traced.graph)
    with noted() as ways, torch.no_grad():
        graph = torch.fx.experimental.proxy_tensor.make_fx(lambda *tensors: aim_fast.adapter(*tensors))(*given)
        assert ways == ["operator"]
    assert FORWARD.default in {node.target for node in graph.graph.nodes}
    with noted() as ways, FakeTensorMode():
        y = aim_fast.adapter(**inputs())
        y.sum().backward()
        assert ways == []
    assert y.shape == (7, 24)


def check_batched_gradients() -> None:
    """The backward of a plain forward, under vmap: one operator's results for each of the gradients."""
    given = inputs()
    basis = torch.randn(3, 7, 24)
    with noted() as ways:
        y = aim_fast.adapter(**given, skip=True)
        batched = torch.autograd.grad(y, list(given.values()), basis, retain_graph=True, is_grads_batched=True)
        assert ways == ["straight", "operator", "operator", "operator"]
        single = [torch.autograd.grad(y, list(given.values()), dy, retain_graph=True) for dy in basis]
    for one, *others in zip(batched, *single, strict=True):
        torch.testing.assert_close(one, torch.stack(others))


@pytest.mark.parametrize(
    "check",
    [
        check_straight,
        check_modes,
        check_profiler,
        check_other_classes,
        check_negative_views,
        check_tracers,
        check_batched_gradients,
    ],
)
def test_way(interpreted: Callable[..., Any], check: Callable[[], None]) -> None:
    interpreted(check)
