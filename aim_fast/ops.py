"""The two operators of torch.library: schemas, fake kernels, and the plain fallback. No maths here.

`aim_fast::adapter_forward` and `aim_fast::adapter_backward` take the scale apart as a float `alpha` and an optional
tensor `scale` ([1] or [D]), so that only the tensor has a gradient. The compiled library registers the CPU kernels;
everything without a kernel runs `reference.py`. For the backward the forward gives z [M, H] if `keep_z`, and if
`keep_x`, where the compute dtype is narrower than x's, x in it, contiguous. What is not asked for comes back with shape
[0], or [0, H].
"""

from __future__ import annotations

import torch
from torch import Tensor

from aim_fast import reference

_CALL = "str activation, bool skip, float alpha, ScalarType dtype"
FORWARD = (
    "adapter_forward(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? scale, Tensor? row_scale, "
    f"Tensor? residual, {_CALL}, bool keep_z, bool keep_x) -> (Tensor y, Tensor z, Tensor x_kept)"
)
BACKWARD = (
    "adapter_backward(Tensor dy, Tensor? x, Tensor? z, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? scale, "
    f"Tensor? row_scale, {_CALL}, ScalarType x_dtype, int needs) "
    "-> (Tensor dx, Tensor dw1, Tensor db1, Tensor dw2, Tensor db2, Tensor dscale)"
)
# The whole of `aim_fast.adapter` as one node of an exported program; functional.py gives it its meaning.
EXPORTED = f"adapter({FORWARD[FORWARD.index('(') + 1 : FORWARD.index(', bool keep_z')]}, bool recompute) -> Tensor"
# Bits of `needs`, in the order of the backward's results.
NEEDS = ("x", "w1", "b1", "w2", "b2", "scale")

_library = torch.library.Library("aim_fast", "DEF")
_library.define(FORWARD)
_library.define(BACKWARD)
_library.define(EXPORTED)


def empty_like(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Uninitialised, of t's shape and device; of t's strides when those are dense with unit stride on the last dim."""
    if t.is_contiguous() or not _is_dense_rows(t):
        return torch.empty(t.shape, dtype=dtype, device=t.device)
    return torch.empty_strided(t.shape, t.stride(), dtype=dtype, device=t.device)


def _is_dense_rows(t: Tensor) -> bool:
    """Whether t permutes the leading dims of a contiguous tensor. The kernels lay results out by this rule."""
    expected = 1
    for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected = expected * size
    return t.shape[-1] == 1 or t.stride(-1) == 1


def _nothing(dy: Tensor) -> Tensor:
    """What comes back for a gradient that was not asked for."""
    return dy.new_empty((0,), dtype=torch.float32)


def narrows(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether a compute dtype is narrower than x's."""
    return dtype.itemsize < x.dtype.itemsize


def kept_x(x: Tensor, dtype: torch.dtype, keep_x: bool) -> Tensor:
    """The forward's last result, for those that do not make it on the way."""
    if keep_x and narrows(x, dtype):
        return x.to(dtype, memory_format=torch.contiguous_format)
    return x.new_empty((0,), dtype=dtype)


@torch.library.register_fake("aim_fast::adapter_forward", lib=_library)
def _forward_fake(x, w1, b1, w2, b2, scale, row_scale, residual, activation, skip, alpha, dtype, keep_z, keep_x):
    y = empty_like(x if residual is None else residual, reference.output_dtype(dtype, x, skip, residual))
    rows = x.numel() // x.shape[-1] if keep_z else 0
    return y, x.new_empty((rows, w1.shape[0]), dtype=dtype), kept_x(x, dtype, keep_x)


@torch.library.register_fake("aim_fast::adapter_backward", lib=_library)
def _backward_fake(dy, x, z, w1, b1, w2, b2, scale, row_scale, activation, skip, alpha, dtype, x_dtype, needs):
    wanted = [bool(needs >> i & 1) for i in range(len(NEEDS))]
    return empty_like(dy, x_dtype) if wanted[0] else _nothing(dy), *(
        torch.empty(p.shape, dtype=p.dtype, device=p.device) if want and p is not None else _nothing(dy)
        for p, want in zip((w1, b1, w2, b2, scale), wanted[1:], strict=True)
    )


def _forward_reference(x, w1, b1, w2, b2, scale, row_scale, residual, activation, skip, alpha, dtype, keep_z, keep_x):
    with reference.no_autocast(x.device.type):
        y, z = reference.forward(x, w1, b1, w2, b2, scale, row_scale, residual, activation, skip, alpha, dtype)
    out = empty_like(x if residual is None else residual, y.dtype)
    return out.copy_(y), z if keep_z else z.new_empty((0, w1.shape[0])), kept_x(x, dtype, keep_x)


def _backward_reference(dy, x, z, w1, b1, w2, b2, scale, row_scale, activation, skip, alpha, dtype, x_dtype, needs):
    wanted = [bool(needs >> i & 1) for i in range(len(NEEDS))]
    with reference.no_autocast(dy.device.type):
        grads = reference.backward(
            dy, x, z, w1, b1, w2, b2, scale, row_scale, activation, skip, alpha, dtype, x_dtype, wanted
        )
    results = [_nothing(dy) if g is None else g.contiguous() for g in grads]
    if wanted[0]:
        results[0] = empty_like(dy, x_dtype).copy_(results[0])
    return tuple(results)


_library.impl("adapter_forward", _forward_reference, "CompositeExplicitAutograd")
_library.impl("adapter_backward", _backward_reference, "CompositeExplicitAutograd")

adapter_forward = torch.ops.aim_fast.adapter_forward.default
adapter_backward = torch.ops.aim_fast.adapter_backward.default
adapter_exported = torch.ops.aim_fast.adapter.default
# What calling the operator comes to, without a frame of Python, for calls that nobody traces. Measured: Zen 4: 0.3 us.
run_forward = adapter_forward._op
# A dtype as C++ numbers it, which operators take too. Measured: Zen 4: 0.9 us less of a call for each, since an object
# is asked in vain for its __torch_function__.
NUMBER_OF = {torch.float16: 5, torch.float32: 6, torch.float64: 7, torch.bfloat16: 15}
