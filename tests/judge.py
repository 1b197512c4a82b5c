"""One call of the operator three ways: fused, eager in the same dtype, exact in float64; and the verdict.

Tests draw on the CPU; `evaluate` takes the tensors to the device under test and the results back to where x was.

    AIM_FAST_TEST_DEVICE=cuda     run on this device (default: cpu)
    AIM_FAST_TEST_BACKEND=triton  force this backend (default: the first that has a kernel for the device)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

import aim_fast
from aim_fast import testing
from aim_fast.reference import composition

DEVICE = os.environ.get("AIM_FAST_TEST_DEVICE") or "cpu"

# Tensors by the name of their argument, to be passed on with ** beside any other arguments; None where there is none.
Tensors = dict[str, Any]
make_inputs: Callable[..., Tensors] = testing.make_inputs
# The arguments that have a gradient.
TRAINABLE = ("x", "w1", "b1", "w2", "b2", "residual", "scale")
# The results whose rows are rows of x.
BY_ROW = ("y", "dx", "dresidual")


def kernels_of(device: str) -> list[str]:
    """The backends with a kernel for tensors of a device, in the table's order; eager is none."""
    tensors = make_inputs((64, 64), 16, torch.bfloat16, device=device)
    found = []
    for row in aim_fast.backends()[:-1]:
        try:
            with aim_fast.use_backend(row.name):
                aim_fast.explain(**tensors)
        except ValueError:
            continue
        found.append(row.name)
    return found


def _backend_under_test() -> str:
    forced = os.environ.get("AIM_FAST_TEST_BACKEND")
    return forced or ("cpu" if DEVICE == "cpu" else next(iter(kernels_of(DEVICE)), f"none for {DEVICE}"))


# What the fixtures force. "cpu" on the CPU even without its library, so that its tests say so.
BACKEND = _backend_under_test()


def is_refusal(error: Exception) -> bool:
    """Whether a forced backend says that a call is beyond its limits; the automatic choice then takes another."""
    return isinstance(error, ValueError) and "cannot take this call" in str(error)


def placed(t: Tensor, device: str = DEVICE) -> Tensor:
    """t on a device with its strides, its gaps and its offset, which `Tensor.to` drops; t itself if it is there."""
    if t.device.type == torch.device(device).type:
        return t
    whole = t.detach().as_strided((t.untyped_storage().nbytes() // t.itemsize,), (1,), 0)
    return whole.to(device).as_strided(t.shape, t.stride(), t.storage_offset())


def all_placed(tensors: Tensors, device: str = DEVICE) -> Tensors:
    return {name: placed(t, device) if isinstance(t, Tensor) else t for name, t in tensors.items()}


def evaluate(
    function: Callable[..., Tensor],
    tensors: Tensors,
    dy: Tensor | None,
    *,
    wanted: Iterable[str] = TRAINABLE,
    device: str = DEVICE,
    **options: Any,
) -> dict[str, Tensor]:
    """{"y": ..., "dx": ..., ...}: what function returns, and the gradients of `wanted` when the output's is dy."""
    home = tensors["x"].device
    leaves: Tensors = {name: None if t is None else placed(t, device).detach() for name, t in tensors.items()}
    trained = [name for name, t in leaves.items() if name in wanted and t is not None]
    for name in trained:
        leaves[name].requires_grad_()
    y = function(**leaves, **options)
    if dy is None or not trained:
        return {"y": y.detach().to(home)}
    grads = torch.autograd.grad(y, [leaves[name] for name in trained], placed(dy.to(y.dtype), device))
    return {"y": y.detach().to(home), **{f"d{name}": g.to(home) for name, g in zip(trained, grads, strict=True)}}


def exact(tensors: Tensors, dy: Tensor | None, **options: Any) -> dict[str, Tensor]:
    """The truth: the composition in float64."""
    doubles = {name: None if t is None else t.double() for name, t in tensors.items()}
    return evaluate(composition, doubles, None if dy is None else dy.double(), **options)


def assert_judged(
    fused: Mapping[str, Tensor], eager: Mapping[str, Tensor], truth: Mapping[str, Tensor], *, per_row: bool = False
) -> None:
    """Same names, shapes and dtypes as eager, and every error within the budget; all failures in one message."""
    assert fused.keys() == eager.keys() == truth.keys()
    failures = []
    for name in fused:
        try:
            testing.assert_within_budget(
                name, fused[name], eager[name], truth[name], per_row=per_row and name in BY_ROW
            )
        except AssertionError as failure:
            failures.append(str(failure))
    assert not failures, "; ".join(failures)


def assert_model_judged(fused: Mapping[str, Tensor], eager: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> None:
    """As assert_judged, of a model of many layers, by errors relative to each tensor's largest value.

    Each gradient has the rounding of every layer in it, and which tensor it hits most is chance. So what eager may be
    taken for in any of them is the worst that it does in all of them.
    """
    assert fused.keys() == eager.keys() == truth.keys()
    scales = {name: t.abs().max() for name, t in truth.items()}
    worst = max(float((eager[name].double() - t).abs().max() / scales[name]) for name, t in truth.items())
    for name, t in truth.items():
        assert (fused[name].dtype, fused[name].shape) == (eager[name].dtype, eager[name].shape), name
        error = float((fused[name].double() - t).abs().max() / scales[name])
        allowed = testing.SLACK[fused[name].dtype] * worst + torch.finfo(fused[name].dtype).eps
        assert error <= allowed, f"{name}: relative error {error:.3g}, eager's worst {worst:.3g}, allowed {allowed:.3g}"


def further(truth: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The one of two single numbers that is further from the truth."""
    return a if (a - truth).abs() > (b - truth).abs() else b


def judge(tensors: Tensors, dy: Tensor | None, *, per_row: bool = False, **options: Any) -> dict[str, Tensor]:
    """Judge `aim_fast.adapter` for y and every gradient; returns its results.

    What eager's error in a single number is, is chance: on a device it stands beside that of eager on the CPU, which
    sums in another order, and the larger one counts.
    """
    fused, truth = evaluate(aim_fast.adapter, tensors, dy, **options), exact(tensors, dy, **options)
    eager = evaluate(composition, tensors, dy, **options)
    single = [name for name, t in truth.items() if t.numel() == 1] if DEVICE != "cpu" else []
    if single:
        on_cpu = evaluate(composition, tensors, dy, device="cpu", **options)
        eager |= {name: further(truth[name], eager[name], on_cpu[name]) for name in single}
    assert_judged(fused, eager, truth, per_row=per_row)
    return fused
