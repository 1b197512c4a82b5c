"""NaN and inf go through as in eager, and no further.

Eager means float64 here: in fp32 torch's GELU of +inf is NaN within its vectors and inf in the remainder after them.
"""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

import aim_fast
from judge import DEVICE, TRAINABLE, Tensors, all_placed, evaluate, exact, make_inputs

INF, NAN = float("inf"), float("nan")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
ROWS, WIDTH = 29, 48
COUNTS = pytest.mark.parametrize("rows", [ROWS, 11, 263], ids=["rows", "few_rows", "more_rows"])


def inputs(dtype: torch.dtype, rows: int = ROWS) -> tuple[Tensors, Tensor]:
    """The tensors of a call with every gradient, and dy. Beyond ROWS the rows come again, since among many there is a
    branch so near zero that its sign, and so that of inf times it, is a matter of rounding.
    """
    least = min(rows, ROWS)
    tensors = make_inputs((least, WIDTH), 24, dtype)
    generator = torch.Generator().manual_seed(1)
    residual, scale, dy = (torch.randn(n, WIDTH, generator=generator).to(dtype) for n in (least, 1, least))
    x, residual, dy = (t.repeat(rows // least + 1, 1)[:rows] for t in (tensors["x"], residual, dy))
    return tensors | {"x": x, "residual": residual, "scale": scale[0]}, dy


def assert_same_positions(got: dict[str, Tensor], eager: dict[str, Tensor]) -> None:
    """y: NaN, inf and -inf where eager has them. Gradients: finite where eager's are; a sum taken in another order may
    meet inf - inf at another step.
    """
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(got["y"]), kind(eager["y"])), f"y: {kind.__name__} elsewhere than in eager"
    assert got.keys() == eager.keys()
    for name, value in got.items():
        assert torch.equal(value.isfinite(), eager[name].isfinite()), f"{name}: finite elsewhere than in eager"


@DTYPES
@pytest.mark.parametrize("activation", aim_fast.ACTIVATIONS)
@pytest.mark.parametrize(
    "planted",
    [
        {"x": (3, 5, NAN)},
        {"x": (3, 5, INF)},
        {"x": (-1, 47, -INF)},
        {"w1": (23, 47, NAN)},
        {"b1": (23, INF)},
        {"w2": (47, 23, INF)},
        {"b2": (47, NAN)},
        {"residual": (-1, 47, -INF), "scale": (0, INF)},
        {"dy": (-1, 47, NAN)},
        {"dy": (0, 0, INF), "x": (-1, 0, INF)},
    ],
    ids=lambda planted: "+".join(f"{name}={place[-1]}" for name, place in planted.items()),
)
@COUNTS
def test_same_positions_as_eager(fused: None, dtype: torch.dtype, activation: str, planted: dict, rows: int) -> None:
    tensors, dy = inputs(dtype, rows)
    for name, (*place, value) in planted.items():
        (tensors | {"dy": dy})[name][tuple(place)] = value
    got = evaluate(aim_fast.adapter, tensors, dy, activation=activation, skip=True)
    assert_same_positions(got, exact(tensors, dy, activation=activation, skip=True))


@DTYPES
@pytest.mark.parametrize("activation", aim_fast.ACTIVATIONS)
@COUNTS
def test_recomputed_like_kept(fused: None, dtype: torch.dtype, activation: str, rows: int) -> None:
    tensors, dy = inputs(dtype, rows)
    tensors["x"][3, 5], tensors["x"][-1, 47] = INF, -INF
    kept, again = (
        evaluate(aim_fast.adapter, tensors, dy, activation=activation, recompute=recompute)
        for recompute in (False, True)
    )
    assert_same_positions(again, kept)


@pytest.mark.parametrize("activation", aim_fast.ACTIVATIONS)
@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
def test_activation_of_one_value(isa: str, activation: str, value: float) -> None:
    """D = H = 1: act and act' of the value itself, on each instruction set."""
    one = torch.ones(1, 1)
    tensors = {"x": torch.full((19, 1), value), "w1": one, "b1": None, "w2": one, "b2": None}
    ones = torch.ones(19, 1)
    got = evaluate(aim_fast.adapter, tensors, ones, activation=activation)
    assert_same_positions(got, exact(tensors, ones, activation=activation))


@DTYPES
@COUNTS
def test_other_rows_keep_their_bits(isa: str, dtype: torch.dtype, rows: int) -> None:
    tensors, dy = inputs(dtype, rows)
    clean = evaluate(aim_fast.adapter, tensors, dy, skip=True)
    tensors["x"][7] = NAN
    tensors["x"][10, 0] = INF
    spoilt = evaluate(aim_fast.adapter, tensors, dy, skip=True)
    others = [i for i in range(rows) if i not in (7, 10)]
    for name in ("y", "dx", "dresidual"):
        assert torch.equal(spoilt[name][others], clean[name][others]), name
    assert spoilt["y"][7].isnan().all()


@DTYPES
@COUNTS
def test_nothing_stays_behind(isa: str, dtype: torch.dtype, rows: int) -> None:
    """A call full of NaN leaves NaN in every buffer that is used again; the next call, ragged, must not see them."""
    tensors, dy = inputs(dtype, rows)
    before = evaluate(aim_fast.adapter, tensors, dy, skip=True)
    for shape, hidden in (((64, 256), 64), ((16, 256), 64), ((rows, WIDTH), 24)):
        spoilt = make_inputs(shape, hidden, dtype)
        for tensor in spoilt.values():
            tensor.fill_(NAN)
        evaluate(aim_fast.adapter, spoilt, torch.full(shape, NAN, dtype=dtype))
    after = evaluate(aim_fast.adapter, tensors, dy, skip=True)
    for name in ("y", *(f"d{argument}" for argument in TRAINABLE)):
        assert torch.equal(after[name], before[name]), name


def test_overflow_to_inf(isa: str) -> None:
    """y beyond the range of fp16 is inf, as in eager; a sum that only passes through there is not lost."""
    tensors = make_inputs((5, 40), 8, torch.float16)
    tensors["x"] = torch.full((5, 40), 6e4, dtype=torch.float16)
    tensors = all_placed(tensors)
    with torch.no_grad():
        tensors["w1"].zero_()
        y = aim_fast.adapter(**tensors, skip=True, residual=tensors["x"])
    assert torch.equal(y, torch.full_like(y, INF))


def test_unwritten_memory_would_show(poison: None) -> None:
    """The poison of the numeric tests reaches new tensors: none of them is zero by luck."""
    process = ctypes.CDLL(None)
    if DEVICE == "cpu" and (not hasattr(process, "mallopt") or hasattr(process, "__asan_init")):
        pytest.skip("only glibc's own malloc fills fresh memory")
    for count in (3, 1000, 3_000_000):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            fresh = torch.empty(count, dtype=dtype, device=DEVICE)
            assert (fresh.isnan() | (fresh.abs() > 1e38)).all()
