"""Tiles of the kernels: pure functions from shape, dtypes and GPU to a plan. Knows neither torch nor Triton.

The tiles themselves, and what their families and load classes are, are in kernels/tiles.py.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from aim_fast.kernels.tiles import FEW, TILES, Tile

MAX_PARTS = 4
KERNELS = ("fwd", "dx", "dw")
LOADS = ("half", "amp", "tf32", "ieee")
SPLITS = (1, 2, 4, 8)
# The most rows of a tile of fwd and dx whose rows have more than one dimension: their 64-bit offsets live in registers,
# and with all terms of the operator larger tiles spill.
STRIDED_ROWS = {80: 32, 90: 64, 100: 64}
# The most rows that a program of dw sums one after the other. Errors as a share of the largest gradient, modelled for
# D, H = 768, 192. In fp32 they grow with the root of the rows: 2.6e-6 with these, for any M; 8.4e-6 with 78400, where
# an H100 gave 8.4e-6 and the budget is 5.7e-6. Tensor cores cut off what they add, 8 or 16 rows in 16 bits at a time:
# 2e-4 with these, 3e-3 with a million, where the budget of fp16 is 1.5e-3.
LONGEST_SUM = {"ieee": 10240, "tf32": 65536, "half": 65536, "amp": 65536}


class Gpu(NamedTuple):
    """What a plan depends on."""

    name: str
    capability: tuple[int, int]
    sms: int


class Plan(NamedTuple):
    """A tile and how the work is divided: `split` spans of columns for fwd and dx, slices of rows at least for dw."""

    tile: Tile
    parts: tuple[int, int, int, int]
    split: int


def family(gpu: Gpu) -> int | None:
    """The key of `TILES` that serves a GPU, None if none does."""
    major = gpu.capability[0]
    return {8: 80, 9: 90, 10: 100, 12: 80}.get(major)


@cache
def parts(H: int, widest: int) -> tuple[int, int, int, int]:
    """Up to four powers of two that cover H with the least padding; 0 for those that are not needed.

    None is wider than `widest`, unless four would not reach H; none is narrower than 16.

    An odd H has one part, or parts of 64 and more. Its rows in 16 bits cannot be fetched ahead: products with tiles of
    the weights that have different swizzles, as those of 64, of 32 and of 16 columns have, then share a place in shared
    memory, and ptxas (with Triton 3.6) loses the address of all but the first.
    """
    left = -(-H // 16) * 16
    if H % 2 and left > 16:
        left = 32 if left <= 32 else -(-left // 64) * 64
    while widest * MAX_PARTS < left:
        widest *= 2
    found: list[int] = []
    while left > 0:
        below = 1 << (left.bit_length() - 1)
        # The last one has to reach.
        part = below if below == left or len(found) < MAX_PARTS - 1 else 2 * below
        found.append(min(part, widest))
        left -= found[-1]
    p0, p1, p2, p3 = found + [0] * (MAX_PARTS - len(found))
    return p0, p1, p2, p3


def tiles(gpu: Gpu, kernel: str, load: str, H: int) -> tuple[Tile, ...]:
    """The tiles that a kernel may use at this H; empty if there are none."""
    table = TILES.get(family(gpu) or 0)
    if table is None:
        return ()
    fitting = [tile for tile in table[load][kernel] if tile.max_h >= H][:1]
    return tuple(dict.fromkeys((*fitting, *(tile for tile in FEW[load][kernel] if tile.max_h >= H))))


def cost(gpu: Gpu, load: str, M: int, D: int, H: int, tile: Tile, split: int) -> float:
    """What a plan of fwd or dx takes, in bytes through one SM: only good for comparing plans.

    Every wave of programs reads the weights anew, from L2; a step of the loops costs about as much as 12 KB more.
    """
    size = 2 if load == "half" else 4
    programs = -(-M // tile.block_m) * split
    moved = size * (D * H * (1 + 1 / split) + tile.block_m * D * (1 + 2 / split))
    steps = -(-D // tile.block_k) - (-D // (tile.block_d * split))
    return -(-programs // gpu.sms) * (moved + 12e3 * steps)


def plans(gpu: Gpu, kernel: str, load: str, M: int, D: int, H: int, sides: int = 1, dims: int = 1) -> list[Plan]:
    """Every plan that the table allows, the most promising first; empty where no tile serves.

    sides: of "dw", how many of its two products are wanted. dims: of the rows, as blocks.py walks them.
    """
    found = tiles(gpu, kernel, load, H)
    if kernel == "dw":
        # One wave of programs; a slice of less than four steps costs more in partial sums than it gains.
        return [
            Plan(
                tile,
                parts(H, tile.part),
                max(1, min(gpu.sms // (-(-D // tile.block_d) * sides), M // (4 * tile.block_m))),
            )
            for tile in found
        ]
    if dims > 1:
        found = tuple(tile for tile in found if tile.block_m <= STRIDED_ROWS[family(gpu) or 80])
    options = [(tile, split) for tile in found for split in SPLITS if split == 1 or split * tile.block_d <= D]
    options.sort(key=lambda option: cost(gpu, load, M, D, H, *option))
    return [Plan(tile, parts(H, tile.part), split) for tile, split in options]


def slice_rows(plan: Plan, load: str, M: int) -> int:
    """The rows that a program of dw sums: whole tiles, and as many for each."""
    slices = max(plan.split, -(-M // LONGEST_SUM[load]))
    return -(-M // (slices * plan.tile.block_m)) * plan.tile.block_m
