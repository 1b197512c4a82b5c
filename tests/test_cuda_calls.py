"""Calls of every kind on the CUDA kernels, emulated: autocast and mixed dtypes, what is wanted and kept, NaN, far rows.

As in test_cuda_numerics.py each test hands a function of this file to the process of `emulated`.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch

import aim_fast
from aim_fast import ops
from cuda_cases import DTYPES, FORMS, PLANS, full
from emulation import LAZY
from interpreter import fill_new_memory
from judge import TRAINABLE, assert_judged, evaluate, exact, judge, make_inputs
from numeric_cases import BF16, FP16, FP32
from test_cuda_numerics import FAMILIES, Emulated, choose
from test_mixed import AUTOCAST, PROMOTED, under, users_code
from test_mixed import inputs as mixed_inputs
from test_nonfinite import INF, NAN, assert_same_positions


def judge_autocast(family: str, name: str) -> None:
    choose(family, LAZY)
    x, w, residual, autocast, skip, y = AUTOCAST[name]
    tensors, dy = mixed_inputs(x, w, residual, 131, (128, 64))
    for part in (slice(None), slice(7)):
        some = {n: t[part] if n in ("x", "residual") else t for n, t in tensors.items()}
        options: dict[str, Any] = {"skip": skip, "scale": 0.5}
        fused = evaluate(under(autocast, aim_fast.adapter), some, dy[part], **options)
        assert fused["y"].dtype is y
        eager = evaluate(under(autocast, users_code), some, dy[part], **options)
        assert_judged(fused, eager, exact(some, dy[part], **options))


@FAMILIES
@pytest.mark.parametrize("name", AUTOCAST)
def test_autocast(emulated: Emulated, family: str, name: str) -> None:
    emulated(judge_autocast, family, name)


def takes(family: str, name: str) -> bool:
    """Whether the dtype that x and the weights are promoted to is one of the family's."""
    return torch.promote_types(*PROMOTED[name][:2]) in DTYPES[family]


def judge_promotion(family: str, name: str) -> None:
    choose(family, LAZY)
    x, w, residual, skip, y = PROMOTED[name]
    tensors, dy = mixed_inputs(x, w, residual, 67, (128, 64))
    for other in (FP32, BF16, FP16):
        parts = {"b1": tensors["b1"].to(other), "b2": tensors["b2"].to(other), "scale": torch.rand(128).to(other)}
        # A parameter that is wider than x and the weights would make the products wider too.
        if torch.promote_types(other, w) is not w:
            parts = {"scale": parts["scale"].to(w)}
        assert judge(tensors | parts | {"row_scale": torch.rand(67).to(other)}, dy, skip=skip)["y"].dtype is y


@pytest.mark.parametrize(("family", "name"), [(f, name) for f in PLANS for name in PROMOTED if takes(f, name)])
def test_promotion(emulated: Emulated, family: str, name: str) -> None:
    emulated(judge_promotion, family, name)


def check_what_is_not_kept(family: str) -> None:
    choose(family)
    for dtype in DTYPES[family]:
        call = (*make_inputs((7, 64), 64, dtype).values(), None, None, None, "gelu", False, 1.0, dtype)
        whole, _, _ = ops.adapter_forward(*call, True, True)
        y, z, x_kept = ops.adapter_forward(*call, False, False)
        assert torch.equal(y, whole)
        assert (z.shape, z.dtype, x_kept.shape, x_kept.dtype) == ((0, 64), dtype, (0,), dtype)


@FAMILIES
def test_the_operator_gives_tensors_for_what_is_not_kept(emulated: Emulated, family: str) -> None:
    """As its schema and its fake kernel say, though the kernels' own forward gives None there."""
    emulated(check_what_is_not_kept, family)


def compare_needs(family: str, dtype: torch.dtype, recompute: bool, scaled: bool) -> None:
    choose(family, LAZY)
    tensors, dy, options = full(dtype, 67, 64, 64)
    if not scaled:
        del tensors["scale"]
    everything = judge(tensors, dy, **options)
    trainable = [name for name in TRAINABLE if name != "residual" and name in tensors]
    masks = [wanted for count in range(1, 7) for wanted in combinations(trainable, count)]
    assert len(masks) == (63 if scaled else 31)
    for wanted in masks:
        some = evaluate(aim_fast.adapter, tensors, dy, wanted=wanted, recompute=recompute, **options)
        assert some.keys() == {"y", *(f"d{name}" for name in wanted)}
        for name, value in some.items():
            assert torch.equal(value, everything[name]), f"{name} when {wanted} are wanted"


@pytest.mark.parametrize(
    ("family", "dtype", "scaled"),
    [*((family, dtype, True) for family, dtype in FORMS), *(("tiles", dtype, False) for dtype in (FP32, BF16))],
    ids=str,
)
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_only_what_is_wanted(
    emulated: Emulated, family: str, dtype: torch.dtype, scaled: bool, recompute: bool
) -> None:
    """Every mask of `needs`: frozen tensors change no bit of the others' gradients, nor does a z that is made again.

    In tiles few rows without a scale go a way of their own.
    """
    emulated(compare_needs, family, dtype, recompute, scaled)


def check_nonfinite(family: str, dtype: torch.dtype) -> None:
    choose(family)
    for activation in aim_fast.ACTIVATIONS:
        for name, place, value in (
            ("x", (2, 5), NAN),
            ("x", (64, 63), INF),
            ("x", (0, 0), -INF),
            ("w1", (3, 7), INF),
            ("b1", 63, INF),
            ("w2", (63, 63), NAN),
            ("b2", 39, NAN),
            ("residual", (66, 63), -INF),
            ("row_scale", 4, INF),
        ):
            tensors, dy, options = full(dtype, 67, 64, 64)
            tensors[name][place] = value
            got = evaluate(aim_fast.adapter, tensors, dy, **options | {"activation": activation})
            assert_same_positions(got, exact(tensors, dy, **options | {"activation": activation}))


@pytest.mark.parametrize(("family", "dtype"), FORMS, ids=str)
def test_nonfinite_positions(emulated: Emulated, family: str, dtype: torch.dtype) -> None:
    """NaN and inf go where eager has them, and no further."""
    emulated(check_nonfinite, family, dtype)


def check_far_rows(family: str, dtype: torch.dtype, M: int, stride: int) -> None:
    choose(family, LAZY)
    fill_new_memory(False)
    stride = stride * 2 // dtype.itemsize
    tensors, dy, options = full(dtype, M, 64, 64)
    # zeros: memory that is not touched is not there either
    far = torch.zeros((M - 1) * stride + 64, dtype=dtype).as_strided((M, 64), (stride, 1))
    assert (M - 1) * stride * dtype.itemsize > 2**32
    far.copy_(tensors["x"])
    got = evaluate(aim_fast.adapter, tensors | {"x": far, "residual": far}, dy, **options)
    expected = evaluate(aim_fast.adapter, tensors | {"residual": tensors["x"]}, dy, **options)
    for name, value in expected.items():
        assert torch.equal(got[name], value), name
    fill_new_memory(True)


@pytest.mark.parametrize(("family", "dtype"), FORMS, ids=str)
@pytest.mark.parametrize(("M", "stride"), [(6, 2**29), (300, 2**23)], ids=["within_a_tile", "between_tiles"])
def test_rows_beyond_32_bits(emulated: Emulated, family: str, dtype: torch.dtype, M: int, stride: int) -> None:
    emulated(check_far_rows, family, dtype, M, stride)
