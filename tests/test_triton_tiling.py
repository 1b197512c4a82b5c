"""The pure functions under the Triton backend: parts of H, plans, merged rows, counted work."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import estimate as page
from aim_fast.kernels import estimate, tiling
from aim_fast.kernels.estimate import Case
from aim_fast.kernels.tiling import Gpu, Plan, Tile
from aim_fast.triton_rows import fold

H100 = page.H100
GPUS = {80: Gpu("A", (8, 6), 84), 90: H100, 100: Gpu("B", (10, 0), 148)}
HALF = Case(50432, 768, 192, "half", 2, 2, 2, 2)


@pytest.mark.parametrize("widest", [64, 128])
def test_parts_cover_every_h(widest: int) -> None:
    for H in range(1, 513):
        parts = tiling.parts(H, widest)
        used = [part for part in parts if part]
        assert sum(parts) >= H
        assert all(part >= 16 and part & (part - 1) == 0 for part in used)
        assert list(parts) == used + [0] * (tiling.MAX_PARTS - len(used))
        # Never more than the next power of two, and nothing but the last 16 where four parts can do it.
        assert sum(parts) <= max(16, 1 << (H - 1).bit_length())
        if H % 2:
            assert len(used) == 1 or min(used) >= 64
        elif bin(-(-H // 16) % (widest // 16)).count("1") + -(-H // 16) // (widest // 16) <= tiling.MAX_PARTS:
            assert sum(parts) - H < 16


@pytest.mark.parametrize(
    ("H", "widest", "expected"),
    [
        (192, 128, (128, 64, 0, 0)),
        (192, 64, (64, 64, 64, 0)),
        (320, 128, (128, 128, 64, 0)),
        (196, 128, (128, 64, 16, 0)),
        (512, 64, (128, 128, 128, 128)),
        (1, 64, (16, 0, 0, 0)),
        (33, 64, (64, 0, 0, 0)),
        (193, 128, (128, 128, 0, 0)),
    ],
)
def test_parts(H: int, widest: int, expected: tuple[int, ...]) -> None:
    assert tiling.parts(H, widest) == expected


@pytest.mark.parametrize(
    ("capability", "family"),
    [((8, 9), 80), ((9, 0), 90), ((10, 3), 100), ((12, 0), 80), ((7, 5), None), ((11, 0), None)],
)
def test_family(capability: tuple[int, int], family: int | None) -> None:
    gpu = Gpu("", capability, 100)
    assert tiling.family(gpu) == family
    assert bool(tiling.plans(gpu, "fwd", "half", 1000, 768, 192)) is (family is not None)


@pytest.mark.parametrize("family", GPUS)
@pytest.mark.parametrize("load", tiling.LOADS)
def test_every_h_has_tiles_or_none(family: int, load: str) -> None:
    """The three kernels serve the same H, up to 512; the rows are in rising order."""
    for kernel in tiling.KERNELS:
        bounds = [tile.max_h for tile in tiling.TILES[family][load][kernel]]
        assert bounds == sorted(set(bounds))
    for H in range(1, 520):
        served = {bool(tiling.tiles(GPUS[family], kernel, load, H)) for kernel in tiling.KERNELS}
        assert served == {H <= 512}
        for kernel in ("fwd", "dx"):
            strided = tiling.plans(GPUS[family], kernel, load, 50432, 768, H, dims=2)
            assert bool(strided) in served
            assert all(plan.tile.block_m <= tiling.STRIDED_ROWS[family] for plan in strided)


@pytest.mark.parametrize("M", [1, 197, 1576, 12608, 401408])
@pytest.mark.parametrize("family", GPUS)
def test_plans(family: int, M: int) -> None:
    """Each covers all rows and columns, the first is the cheapest; slices of dw are not too short."""
    gpu = GPUS[family]
    for kernel in ("fwd", "dx"):
        plans = tiling.plans(gpu, kernel, "half", M, 768, 192)
        costs = [tiling.cost(gpu, "half", M, 768, 192, plan.tile, plan.split) for plan in plans]
        assert costs == sorted(costs)
        assert len(set(plans)) == len(plans)
        assert all(sum(plan.parts) >= 192 and plan.split * plan.tile.block_d <= 768 for plan in plans)
    dw = tiling.plans(gpu, "dw", "half", M, 768, 192, 2)[0]
    assert 1 <= dw.split <= max(1, gpu.sms)
    assert dw.split == 1 or dw.split * 4 * dw.tile.block_m <= M


@pytest.mark.parametrize("M", [1, 10241, 156800, 1003520])
@pytest.mark.parametrize("load", tiling.LOADS)
def test_slices_of_rows(load: str, M: int) -> None:
    """They are whole tiles, at least as many as planned where there are so many tiles, and none is too long to sum."""
    (plan,) = tiling.plans(GPUS[80], "dw", load, M, 1280, 512, 2)
    for split in (plan.split, 1, 50):
        rows = tiling.slice_rows(plan._replace(split=split), load, M)
        assert rows % plan.tile.block_m == 0
        assert (split - 1) * (rows - plan.tile.block_m) < M
        assert rows <= {"ieee": 10240}.get(load, 65536)


def test_a_sum_over_many_rows_keeps_the_budget() -> None:
    """An H100's slices of products in fp32, added up in the kernels' order, take half of what the budget allows.

    Eager's own error there was 1.4e-6 of the largest gradient, so 5.7e-6 is allowed.
    """
    M, columns = 156800, 32  # of D and of H
    (plan,) = tiling.plans(H100, "dw", "ieee", M, 768, 192, 2)
    rows = tiling.slice_rows(plan, "ieee", M)
    random, slices = np.random.default_rng(0), -(-M // rows)
    sums, exact = np.zeros((slices, columns, columns), np.float32), np.zeros((columns, columns))
    for _ in range(rows):
        a, b = random.standard_normal((2, slices, columns), np.float32)
        products = np.multiply(a[:, :, None], b[:, None, :], dtype=np.float64)  # exact, as in an FMA
        sums = (sums + products).astype(np.float32)
        exact += products.sum(0)
    total = np.zeros_like(sums[0])
    for first in range(0, slices, 8):
        total += sums[first : first + 8].sum(0)
    assert abs(total - exact).max() / abs(exact).max() < 2.9e-6


def test_few_rows_fill_the_gpu() -> None:
    """197 rows are 2 tiles of 128: other tiles and spans of columns give an H100 tens of programs; many rows do not."""
    few = tiling.plans(H100, "fwd", "half", 197, 768, 192)[0]
    assert -(-197 // few.tile.block_m) * few.split >= 20
    many = tiling.plans(H100, "fwd", "half", 50432, 768, 192)[0]
    assert (many.tile.block_m, many.split) == (128, 1)


@pytest.mark.parametrize(
    ("sizes", "strides", "expected"),
    [
        ((), [()], (1, 1, 1, [(0, 0, 0)])),
        ((6, 7), [(7 * 64, 64)], (1, 1, 42, [(0, 0, 64)])),
        ((6, 7), [(64, 6 * 64)], (2, 6, 7, [(0, 64, 6 * 64)])),
        ((6, 1, 7), [(7 * 64, 5, 64)], (1, 1, 42, [(0, 0, 64)])),
        # A dimension merges only where all tensors allow it; stride 0 does everywhere.
        ((6, 7), [(448, 64), (1, 0)], (2, 6, 7, [(0, 448, 64), (0, 1, 0)])),
        ((6, 7), [(448, 64), (0, 0)], (1, 1, 42, [(0, 0, 64), (0, 0, 0)])),
        ((2, 3, 4), [(8, 16, 48)], (3, 3, 4, [(8, 16, 48)])),
        ((2, 3, 4, 5), [(1000, 8, 100, 20)], (3, 3, 20, [(1000, 8, 20)])),
        # Far rows take the way with 64-bit offsets.
        ((5,), [(1 << 22,)], (2, 1, 5, [(0, 0, 1 << 22)])),
    ],
)
def test_fold(sizes: tuple[int, ...], strides: list[tuple[int, ...]], expected: tuple) -> None:
    dims, n1, n2, triples = expected
    assert fold(sizes, *strides) == (dims, n1, n2, tuple(triples))


def test_fold_of_too_many_dimensions() -> None:
    assert fold((2, 3, 4, 5), (8, 16, 48, 400)) is None


def test_bytes_are_those_of_the_design() -> None:
    """DESIGN's table: a forward reads x and writes y, 3072 B a row at D = 768 in bf16, z another 384; FLOP 0.59 M."""
    plan = tiling.plans(H100, "fwd", "half", 50432, 768, 192)[0]
    weights = 2 * 2 * 768 * 192
    (inference,) = estimate.fused_forward(HALF, plan, keep_z=False)
    (training,) = estimate.fused_forward(HALF, plan, keep_z=True)
    assert inference.dram == 50432 * 3072 + weights
    assert training.dram - inference.dram == 50432 * 384
    assert inference.flop == 4.0 * 50432 * 768 * 192
    # Every program of 128 rows reads both weights from L2.
    assert inference.l2 == 50432 * 3072 + 394 * weights
    # Eager: 4608 B a row, and 9216 with skip.
    for skip, bytes_a_row in ((False, 4608), (True, 9216)):
        works = estimate.eager_forward(HALF._replace(skip=skip))
        assert sum(work.dram for work in works) == 50432 * bytes_a_row + weights


def test_split_and_waves_cost_what_they_do() -> None:
    tile = Tile(192, 128, 64, 64, 128, 8, 3)
    whole, halves = Plan(tile, (128, 64, 0, 0), 1), Plan(tile, (128, 64, 0, 0), 2)
    (one,), (two,) = (estimate.fused_forward(HALF, plan, keep_z=False) for plan in (whole, halves))
    assert two.flop == 1.5 * one.flop  # z is computed for each span
    assert two.programs == 2 * one.programs
    assert estimate.filled(H100, one) == pytest.approx(3 * 132 / 394)
    assert estimate.seconds(H100, HALF, one) > max(one.dram / 3.0e12, one.l2 / 4.0e12)


def test_estimates_grow_with_the_work() -> None:
    for train in (False, True):
        times = [estimate.estimate(H100, HALF._replace(M=M, skip=True), train=train) for M in (1, 1000, 10000, 100000)]
        assert all(a.eager <= b.eager and a.fused <= b.fused for a, b in itertools.pairwise(times))
        assert times[-1].fused < times[-1].eager
        assert times[0].fused > times[0].eager  # the host of a launch
    assert math.isinf(estimate.estimate(H100, HALF._replace(H=600), train=True).fused)


def test_the_page_is_up_to_date_and_says_what_it_is() -> None:
    text = page.PAGE.read_text()
    assert text == page.page(), "python benchmarks/estimate.py"
    assert text.startswith("# Estimate, not a measurement\n")
    assert len(re.findall(r"^\| \w+ \| \d+, \d+, \d+ ", text, re.MULTILINE)) == sum(len(c.modes) for c in page.CASES)


def test_kernels_refuse_the_bare_name() -> None:
    """There is a public package called kernels."""
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", "import kernels"], cwd=root, capture_output=True, text=True)
    assert done.returncode
    assert "use `import aim_fast.kernels`" in done.stderr
