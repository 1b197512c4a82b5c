"""The operators where several backends share a device: kernels for torch that send a call on to the CUDA kernels, to
Triton's or to the composition.

`adapter` calls what it has chosen straight where nobody looks on, else it says so with `on` and calls the operator. An
autograd node keeps the choice for its backward, which runs in another thread. For an operator that runs by itself, in a
compiled graph or an exported program, the choice is made here.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from aim_fast import nvidia, ops, triton_backward, triton_forward
from aim_fast.checks import PLAIN
from aim_fast.triton_device import load_class

# (tensors as in `dispatch.Call`, dtype, skip, whether a train step is weighed) -> the name of a backend
Choose = Callable[[Sequence[Tensor | None], torch.dtype, bool, bool], str]
BACKENDS = ("cuda", "triton")  # that share a device
_BACKEND_SELECT, _IN_PLACE_OR_VIEW = (
    torch._C.DispatchKeySet(key) for key in (torch._C.DispatchKey.BackendSelect, torch._C.DispatchKey.ADInplaceOrView)
)
# The keys that a thread adds to those of its tensors, the second set in inference mode. A mode, a tracer or a transform
# adds another.
_USUAL = ((_BACKEND_SELECT | _IN_PLACE_OR_VIEW).raw_repr(), _BACKEND_SELECT.raw_repr())


class _Said(threading.local):
    backend = ""


_said = _Said()


def on(backend: str, op: Callable[..., Any]) -> Callable[..., Any]:
    """The operator for a call that a backend was chosen for. What is traced is chosen for again where it runs."""
    if torch.compiler.is_compiling():
        return op

    def run(*arguments: Any) -> Any:
        before, _said.backend = _said.backend, backend
        try:
            return op(*arguments)
        finally:
            _said.backend = before

    return run


def forward_on(backend: str, tensors: Sequence[Tensor | None]) -> Callable[..., Any]:
    """The forward op for a call that a backend was chosen for; dtypes as torch.dtype. None may stand for what it does
    not keep."""
    return _FORWARD[backend] if _unobserved(tensors) else on(backend, ops.adapter_forward)


def backward_on(backend: str, tensors: Sequence[Tensor | None]) -> Callable[..., Any]:
    """The backward op, likewise."""
    return _BACKWARD[backend] if _unobserved(tensors) else on(backend, ops.adapter_backward)


def _unobserved(tensors: Sequence[Tensor | None]) -> bool:
    """Whether nothing traces, intercepts, transforms or records a call: then its operator gives nothing but its time.

    Measured: H100 machine: 10 to 20 us of a forward that takes 99.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._dispatch_tls_local_include_set().raw_repr() not in _USUAL
        or torch._C._len_torch_function_stack()
        or torch.autograd._profiler_enabled()
    ):
        return False
    for t in tensors:  # noqa: SIM110, a generator costs more
        # A view that stands for the negative is made one by the operator.
        if t is not None and (type(t) not in PLAIN or t.is_neg()):
            return False
    return True


def _cuda_plan(first: Tensor, w1: Tensor, w2: Tensor, dtype: torch.dtype, backward: bool) -> str:
    H, D = w1.shape
    load = load_class(dtype, first, w1, w2)
    return nvidia.cuda_plan(first.get_device(), load, dtype, first.numel() // D, D, H, backward)


@functools.cache
def _kernel(name: str) -> Callable[..., Any]:
    """An operator of the compiled library, as directly as `ops.run_forward`."""
    return getattr(torch.ops.aim_fast, name).default._op


# What is not kept is None here: a tensor without elements takes the host 2.4 us (H200 machine), for each of two.
def _cuda_forward(x, w1, b1, w2, b2, scale, row_scale, residual, activation, skip, alpha, dtype, keep_z, keep_x):
    plan = _cuda_plan(x, w1, w2, dtype, False)
    call = (activation, skip, alpha, ops.NUMBER_OF[dtype], keep_z, keep_x, plan)
    return _kernel("cuda_forward")(x, w1, b1, w2, b2, scale, row_scale, residual, *call)


def _cuda_backward(dy, x, z, w1, b1, w2, b2, scale, row_scale, activation, skip, alpha, dtype, x_dtype, needs):
    plan = _cuda_plan(dy, w1, w2, dtype, True)
    call = (activation, skip, alpha, ops.NUMBER_OF[dtype], ops.NUMBER_OF[x_dtype], needs, plan)
    return _kernel("cuda_backward")(dy, x, z, w1, b1, w2, b2, scale, row_scale, *call)


_FORWARD = {"cuda": _cuda_forward, "triton": triton_forward.forward, "eager": ops._forward_reference}
_BACKWARD = {"cuda": _cuda_backward, "triton": triton_backward.backward, "eager": ops._backward_reference}


def register(key: str, choose: Choose) -> torch.library.Library:
    """Make these the operators' kernels for a dispatch key of torch, "CUDA" or "CPU", as long as the result lives.

    choose: for calls that nobody has chosen for.
    """

    def forward(x, w1, b1, w2, b2, scale, row_scale, residual, activation, skip, alpha, dtype, keep_z, keep_x):
        tensors = (x, w1, b1, w2, b2, scale, row_scale, residual)
        # z and x are kept for a backward.
        backend = _said.backend or choose(tensors, dtype, skip, keep_z or keep_x)
        y, z, x_kept = _FORWARD[backend](*tensors, activation, skip, alpha, dtype, keep_z, keep_x)
        z = x.new_empty((0, w1.shape[0]), dtype=dtype) if z is None else z
        return y, z, x.new_empty((0,), dtype=dtype) if x_kept is None else x_kept

    def backward(dy, x, z, w1, b1, w2, b2, scale, row_scale, activation, skip, alpha, dtype, x_dtype, needs):
        tensors = (dy, w1, b1, w2, b2, scale, row_scale, None)
        backend = _said.backend or choose(tensors, dtype, skip, True)
        call = (activation, skip, alpha, dtype, x_dtype, needs)
        return _BACKWARD[backend](dy, x, z, w1, b1, w2, b2, scale, row_scale, *call)

    library = torch.library.Library("aim_fast", "IMPL")
    library.impl("adapter_forward", forward, key)
    library.impl("adapter_backward", backward, key)
    return library
