"""The gradients of the parameters as csrc/cuda/hopper/columns_kernel.h and csrc/cuda/sum.cu form them, against float64.

They run where the loaded library has them: emulated, in the process that test_cuda_files.py starts,
or on a GPU of compute capability 9.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from aim_fast import reference
from judge import Tensors, all_placed, assert_judged, make_inputs, placed

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
OPS = torch.ops.aim_fast
EMULATED = torch._C._dispatch_has_kernel_for_dispatch_key("aim_fast::cuda_backward", "CPU")
DEVICE = "cpu" if EMULATED else "cuda"
HOPPER = not EMULATED and torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
if not (EMULATED or HOPPER):
    pytest.skip("needs the emulated library, or a GPU of capability 9.0", allow_module_level=True)
pytestmark = pytest.mark.usefixtures("poison")

NAMES = ("dx", "dw1", "db1", "dw2", "db2", "dscale")
PARAMETERS = 0b111110  # all gradients but dx
# Order of completion (0 at once, 1 as late as possible, 2 at random) and seed.
ORDERS = ((0, 0), (1, 0), (2, 1), (2, 2))
# Multiprocessors of the GPU that is imitated: enough for several ranges of rows.
SMS = 132


@pytest.fixture(autouse=True)
def hopper() -> Iterator[None]:
    OPS.cuda_choose_kernels("hopper")
    OPS.cuda_emulate(0, 0, SMS)
    yield
    OPS.cuda_choose_kernels("")


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(
    M: int,
    D: int,
    H: int,
    dtype: torch.dtype = BF16,
    *,
    weights: torch.dtype | None = None,
    scale: int | None = None,
    rows: bool = False,
    gap: int = 0,
    x_dtype: torch.dtype | None = None,
) -> Tensors:
    """The tensors of a backward; its rows of x and dy lie `gap` elements further apart than they are long."""
    t = make_inputs((M, D), H, weights or dtype)
    t["dy"] = draw(M, D, seed=1)
    for name in ("x", "dy"):
        t[name] = torch.nn.functional.pad(t[name].to(x_dtype or dtype), (0, gap), value=float("nan"))[:, :D]
    t["scale"] = None if scale is None else draw(scale, seed=2).to(weights or dtype)
    # Beyond its last element lies what a read too many would spoil the sums with.
    factors = torch.nn.functional.pad((draw(M, seed=3) > -0.5).float() * 1.5, (0, 64), value=float("nan"))[:M]
    t["row_scale"] = factors if rows else None
    t["z"] = reference.preactivation(t["x"], t["w1"], t["b1"], dtype)
    return t


def run(t: Tensors, needs: int, **options: Any) -> dict[str, Tensor]:
    dtype = t["z"].dtype
    given = all_placed({name: v for name, v in t.items() if name != "dy"}, DEVICE)
    results = OPS.cuda_backward(
        placed(t["dy"], DEVICE),
        *(given[name] for name in ("x", "z", "w1", "b1", "w2", "b2", "scale", "row_scale")),
        options.get("activation", "gelu"),
        True,
        options.get("alpha", 1.0),
        dtype,
        t["x"].dtype,
        needs,
    )
    return {name: r.cpu() for name, r in zip(NAMES, results, strict=True) if r.numel()}


def expected(t: Tensors, needs: int, dtype: torch.dtype | None = None, **options: Any) -> dict[str, Tensor]:
    """The composition in the dtypes of the call, or with everything in `dtype`."""
    cast = {name: v if v is None or dtype is None else v.to(dtype) for name, v in t.items()}
    grads = reference.backward(
        **cast,
        activation=options.get("activation", "gelu"),
        skip=True,
        alpha=options.get("alpha", 1.0),
        dtype=dtype or t["z"].dtype,
        x_dtype=cast["x"].dtype,
        needs=[bool(needs >> i & 1) for i in range(len(NAMES))],
    )
    return {name: g for name, g in zip(NAMES, grads, strict=True) if g is not None}


def judged(t: Tensors, results: dict[str, Tensor], needs: int, **options: Any) -> None:
    assert_judged(results, expected(t, needs, **options), expected(t, needs, torch.float64, **options))


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)) for name in a)


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("H", [64, 128, 192, 256, 320])
def test_plan(H: int, dtype: torch.dtype) -> None:
    """Two ranges of rows, the last column tile narrow; the same bits in every order and from run to run."""
    t = build(577, 320, H, dtype, scale=320, rows=True, gap=8)
    first = run(t, PARAMETERS)
    judged(t, first, PARAMETERS)
    for order, seed in ORDERS:
        OPS.cuda_emulate(order, seed, SMS)
        assert same_bits(first, run(t, PARAMETERS)), f"order {order}, seed {seed}"


@pytest.mark.parametrize("scale", [None, 1, 320])
@pytest.mark.parametrize("needs", range(1, 64))
def test_subset(needs: int, scale: int | None) -> None:
    """Any of the gradients: a product that nobody wants is not formed, its column sums still are."""
    t = build(90, 320, 64, weights=FP32, scale=scale, rows=scale == 1)
    OPS.cuda_emulate(*ORDERS[needs // 2 % len(ORDERS)], SMS)
    results = run(t, needs, alpha=0.5 if scale is None else 1.0)
    judged(t, results, needs if scale else needs & 31, alpha=0.5 if scale is None else 1.0)


@pytest.mark.parametrize("M", [1, 7, 63, 64, 65, 129])
def test_few_rows(M: int) -> None:
    """Less than a step of 64 rows, and a row more than one."""
    t = build(M, 128, 128, FP16, scale=1, rows=True)
    judged(t, run(t, PARAMETERS), PARAMETERS)


@pytest.mark.parametrize("biases", [0b000100, 0b010000, 0b010100])
def test_many_ranges_of_sums(biases: int) -> None:
    """Biases alone, over more ranges of rows than a product would have."""
    t = build(2100, 192, 64, rows=True, gap=64)
    judged(t, run(t, biases), biases)


def test_wide_rows_of_fp32() -> None:
    """Under autocast K1 leaves dy in the dtype of the products."""
    t = build(150, 256, 256, weights=FP32, x_dtype=FP32, scale=256)
    judged(t, run(t, PARAMETERS), PARAMETERS)


def test_more_tiles_than_multiprocessors() -> None:
    """One range for all rows."""
    t = build(700, 320, 64)
    OPS.cuda_emulate(2, 5, 2)
    judged(t, run(t, PARAMETERS), PARAMETERS & 30)
