"""The two registered operators themselves: schema, fake kernels, layout of the results, and what is not asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import aim_fast
from aim_fast import ops
from aim_fast.ops import NEEDS
from judge import evaluate, make_inputs

pytestmark = pytest.mark.usefixtures("cpu_library")

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
ALL = (1 << len(NEEDS)) - 1
forward, backward = torch.ops.aim_fast.adapter_forward.default, torch.ops.aim_fast.adapter_backward.default
# The kernels of CPU tensors, and what stands in for a device that has none.
FORWARDS: dict[str, Callable] = {"kernel": forward, "fallback": ops._forward_reference}
BACKWARDS: dict[str, Callable] = {"kernel": backward, "fallback": ops._backward_reference}


def permuted(t: Tensor) -> Tensor:
    """t's values with its two leading dims swapped in memory."""
    return t.transpose(0, 1).contiguous().transpose(0, 1)


def gapped(t: Tensor) -> Tensor:
    return torch.nn.functional.pad(t, (0, 5))[..., :-5]


def expanded(t: Tensor) -> Tensor:
    return t[:1].expand(t.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.clone,
    "permuted": permuted,
    "gapped": gapped,
    "expanded": expanded,
}


def forward_arguments(
    dtype: torch.dtype,
    *,
    full: bool = True,
    x_as: Callable[[Tensor], Tensor] = torch.clone,
    residual_as: Callable[[Tensor], Tensor] | None = torch.clone,
    keep_z: bool = True,
) -> tuple:
    """Arguments of the forward op; `full` with biases, scale and row_scale."""
    t = make_inputs((4, 6, 24), 8, dtype, bias=full)
    generator = torch.Generator().manual_seed(1)
    scale = torch.rand(24, generator=generator).to(dtype) if full else None
    row_scale = torch.rand(4, 1, generator=generator) if full else None
    residual = None if residual_as is None else residual_as(torch.randn(4, 6, 24, generator=generator).to(dtype))
    x = x_as(t["x"])
    return x, t["w1"], t["b1"], t["w2"], t["b2"], scale, row_scale, residual, "gelu", True, 0.5, dtype, keep_z, True


def backward_arguments(
    dtype: torch.dtype, *, full: bool = True, dy_as: Callable[[Tensor], Tensor] = torch.clone, needs: int = ALL
) -> tuple:
    x, w1, b1, w2, b2, scale, row_scale, _, *call, _, _ = forward_arguments(dtype, full=full)
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(24, 8, generator=generator).to(dtype)
    dy = dy_as(torch.randn(x.shape, generator=generator).to(dtype))
    return dy, x, z, w1, b1, w2, b2, scale, row_scale, *call, x.dtype, needs


@pytest.mark.parametrize("full", [True, False], ids=["full", "bare"])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_opcheck(dtype: torch.dtype, full: bool) -> None:
    residual_as = permuted if full else None
    for keep_z in (True, False):
        arguments = forward_arguments(dtype, full=full, x_as=permuted, residual_as=residual_as, keep_z=keep_z)
        torch.library.opcheck(forward, arguments)
    for needs in (ALL if full else ALL & ~0b110100, 0b000001, 0b000010):
        torch.library.opcheck(backward, backward_arguments(dtype, full=full, dy_as=permuted, needs=needs))


def describe(tensors) -> list[tuple]:
    return [(tuple(t.shape), t.stride(), t.dtype, t.device.type) for t in tensors]


def fake(op: Callable, arguments: tuple) -> list[tuple]:
    with FakeTensorMode() as mode:
        return describe(op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments)))


@pytest.mark.parametrize("residual", [None, *LAYOUTS])
@pytest.mark.parametrize("x", LAYOUTS)
@pytest.mark.parametrize("op", FORWARDS)
def test_layout_of_y(op: str, x: str, residual: str | None) -> None:
    """y has the residual's layout, else x's, where that is dense; the fake kernel says the same as the real one."""
    residual_as = None if residual is None else LAYOUTS[residual]
    arguments = forward_arguments(BF16, x_as=LAYOUTS[x], residual_as=residual_as)
    y, z, x_kept = FORWARDS[op](*arguments)
    like = arguments[0] if residual_as is None else arguments[7]
    dense = (x if residual is None else residual) in ("contiguous", "permuted")
    assert y.stride() == (like.stride() if dense else (144, 24, 1))
    assert z.shape == (24, 8)
    assert z.is_contiguous()
    assert fake(forward, arguments) == describe((y, z, x_kept))


@pytest.mark.parametrize("op", FORWARDS)
@pytest.mark.parametrize("x", [FP32, BF16, FP16], ids=str)
@pytest.mark.parametrize("residual", [None, FP32, BF16, FP16], ids=str)
@pytest.mark.parametrize("skip", [False, True])
def test_dtype_of_y(op: str, x: torch.dtype, residual: torch.dtype | None, skip: bool) -> None:
    """The compute dtype, promoted with x's under skip and with the residual's; what is kept has the compute dtype."""
    arguments = list(forward_arguments(BF16, residual_as=None))
    arguments[0] = arguments[0].to(x)
    arguments[7] = None if residual is None else arguments[0].to(residual)
    arguments[9] = skip
    expected = BF16
    for dtype in ([x] if skip else []) + ([residual] if residual else []):
        expected = torch.promote_types(expected, dtype)
    results = FORWARDS[op](*arguments)
    assert [t.dtype for t in results] == [expected, BF16, BF16]
    assert fake(forward, tuple(arguments)) == describe(results)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", BACKWARDS)
def test_layout_of_dx(op: str, layout: str) -> None:
    arguments = backward_arguments(BF16, dy_as=LAYOUTS[layout])
    results = BACKWARDS[op](*arguments)
    dense = layout in ("contiguous", "permuted")
    assert results[0].stride() == (arguments[0].stride() if dense else (144, 24, 1))
    assert fake(backward, arguments) == describe(results)


@pytest.mark.parametrize("needs", range(ALL + 1))
@pytest.mark.parametrize("op", BACKWARDS)
def test_only_what_is_needed(op: str, needs: int) -> None:
    """Every subset: asked for, the same bits as among all; not asked for, no element and so no work."""
    everything = BACKWARDS[op](*backward_arguments(FP32))
    some = BACKWARDS[op](*backward_arguments(FP32, needs=needs))
    for i, name in enumerate(NEEDS):
        if needs >> i & 1:
            assert torch.equal(some[i], everything[i]), name
        else:
            assert some[i].shape == (0,), name


@pytest.mark.parametrize("full", [True, False], ids=["full", "bare"])
def test_kernel_and_fallback_agree(full: bool) -> None:
    """Given the same arguments, alpha beside a tensor scale among them, which adapter() never passes together."""
    for op, fallback, arguments in (
        (forward, ops._forward_reference, forward_arguments(FP32, full=full)),
        (backward, ops._backward_reference, backward_arguments(FP32, full=full)),
    ):
        for ours, theirs in zip(op(*arguments), fallback(*arguments), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", ops.NUMBER_OF, ids=str)
def test_dtype_by_number(dtype: torch.dtype) -> None:
    """The number that stands for a dtype in a call: the same results, and kernels in Python see the dtype itself."""
    *tensors, activation, skip, alpha, _, keep_z, keep_x = forward_arguments(dtype)
    tensors = [None if t is None else t.to("meta") for t in tensors] if dtype is torch.float64 else tensors
    for op in (forward, ops.run_forward):
        by_number = op(*tensors, activation, skip, alpha, ops.NUMBER_OF[dtype], keep_z, keep_x)
        itself = forward(*tensors, activation, skip, alpha, dtype, keep_z, keep_x)
        for one, other in zip(by_number, itself, strict=True):
            assert one.dtype is other.dtype is dtype
            assert one.is_meta or torch.equal(one, other)


@pytest.mark.parametrize("dtype", [FP32, FP16], ids=str)
def test_fallback_ignores_autocast(dtype: torch.dtype) -> None:
    """The dtype of the products is an argument of the ops: what a program loaded under autocast was exported with."""
    for fallback, arguments in (
        (ops._forward_reference, forward_arguments(dtype)),
        (ops._backward_reference, backward_arguments(dtype)),
    ):
        outside = fallback(*arguments)
        with torch.autocast("cpu", BF16):
            inside = fallback(*arguments)
        for one, other in zip(inside, outside, strict=True):
            assert one.dtype is other.dtype
            assert torch.equal(one, other)


def test_z_only_when_kept() -> None:
    """No z in memory unless the backward will want it; y has the same bits."""
    *arguments, _, _ = forward_arguments(FP32, x_as=permuted)
    y, z, _ = forward(*arguments, True, False)
    again, nothing, _ = forward(*arguments, False, False)
    assert torch.equal(y, again)
    assert nothing.shape == (0, 8)
    x, w1, b1 = arguments[:3]
    torch.testing.assert_close(z, torch.nn.functional.linear(x.reshape(-1, 24), w1, b1))


# Rows for every way through the forward; the last result is so large that its pages are mapped block by block.
@pytest.mark.parametrize("shape", [(0, 37), (1, 24), (3, 7, 37), (197, 40), (5, 130, 100), (4200, 1024)], ids=str)
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_x_as_the_products_round_it(isa: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Kept only where asked for and narrower than x, and then contiguous, whatever x's strides; y has the same bits."""
    t = make_inputs(shape, 20, FP32)
    x = permuted(t["x"]) if len(shape) == 3 else gapped(t["x"])
    if x.numel():
        x[..., 0, :5] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-42, 65519.0])
    call = (x, t["w1"], t["b1"], t["w2"], t["b2"], None, None, None, "gelu", True, 1.0)
    y, z, x_kept = forward(*call, dtype, True, True)
    torch.testing.assert_close(x_kept, x.to(dtype), rtol=0, atol=0, equal_nan=True)
    assert x_kept.is_contiguous()
    others = forward(*call, dtype, True, False)
    assert others[2].shape == forward(*call, FP32, True, True)[2].shape == (0,)
    for one, other in zip((y, z), others[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def _calls(function: Callable[[], object]) -> list[str]:
    """Names of the aim_fast ops that run."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return [event.name for event in profile.events() if event.name.startswith("aim_fast::")]


def test_one_op_forward_one_backward() -> None:
    t = make_inputs((7, 24), 8, requires_grad=True)
    with aim_fast.use_backend("cpu"):
        calls = _calls(lambda: aim_fast.adapter(**t, skip=True).sum().backward())
    assert calls == ["aim_fast::adapter_forward", "aim_fast::adapter_backward"]


def test_no_backward_for_residual_alone() -> None:
    """A frozen adapter in front of nothing: the residual's gradient is dy, and no kernel runs for it."""
    t = make_inputs((7, 24), 8)
    residual = torch.randn(7, 24, requires_grad=True)
    with aim_fast.use_backend("cpu"):
        calls = _calls(lambda: aim_fast.adapter(**t, residual=residual).sum().backward())
    assert calls == ["aim_fast::adapter_forward"]
    assert residual.grad is not None
    assert torch.equal(residual.grad, torch.ones(7, 24))


def test_compiled() -> None:
    """torch.compile takes the call whole: one graph, the same bits as outside."""
    tensors = make_inputs((13, 24), 8)
    dy = torch.randn(13, 24)
    compiled = torch.compile(aim_fast.adapter, fullgraph=True, backend="aot_eager")
    with aim_fast.use_backend("cpu"):
        plain, traced = (evaluate(function, tensors, dy, skip=True) for function in (aim_fast.adapter, compiled))
    for name, value in plain.items():
        assert torch.equal(value, traced[name]), name
