"""The tiles of the kernels, as data: one table per GPU family. Which of them a call takes, kernels/tiling.py decides.

tests/test_triton_compile.py compiles every row ahead of time and asserts that it spills nothing, fits in shared and
tensor memory and multiplies on the tensor cores. What does not compile clean is not here.

Families  80: mma.sync, at most 99 KiB of shared memory, for compute capability 8.x and 12.x
          90: wgmma, 227 KiB          100: tcgen05, 227 KiB, for 10.x
Loads     "half": all operands arrive in the 16 bits that they are multiplied in;  "amp": products in 16 bits of
          operands some of which arrive in another type;  "tf32" and "ieee": products in fp32, on the tensor cores and
          without them
"""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """One row of the table: for H up to max_h; `part` is the widest part of H. block_k means nothing to "dw"."""

    max_h: int
    block_m: int
    block_k: int
    block_d: int
    part: int
    warps: int
    stages: int


_Table = dict[str, dict[str, tuple[Tile, ...]]]

# fp32 products without tensor cores: the same code on every GPU, but for what shared memory holds. With fp32 products
# fwd and dx keep h there, 4 H bytes a row, beside a tile of weights.
_IEEE: dict[str, tuple[Tile, ...]] = {
    # At H = 512 fwd spills with 32 columns of K under Triton 3.6 and with 16 warps under 3.9, and dw with 32 rows on
    # sm_100.
    "fwd": (Tile(256, 32, 32, 32, 64, 8, 2), Tile(512, 32, 16, 32, 128, 8, 2)),
    "dx": (Tile(256, 32, 32, 32, 64, 8, 2), Tile(512, 32, 32, 32, 128, 16, 2)),
    "dw": (Tile(256, 32, 0, 32, 64, 8, 2), Tile(512, 16, 0, 32, 128, 8, 2)),
}

TILES: dict[int, _Table] = {
    80: {
        "half": {
            "fwd": (
                Tile(64, 128, 64, 32, 64, 8, 3),
                # 128 rows at H = 192 spill 112 bytes once rows have three strides.
                Tile(128, 128, 64, 32, 64, 8, 3),
                Tile(256, 64, 64, 32, 128, 8, 3),
                Tile(512, 32, 64, 32, 128, 8, 2),
            ),
            "dx": (
                Tile(64, 128, 64, 32, 64, 8, 3),
                Tile(128, 128, 64, 32, 64, 8, 3),
                Tile(256, 64, 64, 32, 128, 8, 3),
                Tile(512, 32, 64, 32, 128, 8, 2),
            ),
            "dw": (
                Tile(64, 64, 0, 128, 64, 8, 3),
                Tile(192, 64, 0, 128, 64, 8, 3),
                Tile(256, 32, 0, 64, 128, 8, 3),
                Tile(512, 32, 0, 32, 128, 8, 3),
            ),
        },
        "amp": {
            "fwd": (Tile(256, 32, 32, 32, 64, 8, 2), Tile(512, 32, 32, 16, 128, 8, 2)),
            "dx": (Tile(256, 32, 32, 32, 64, 8, 2), Tile(512, 32, 32, 16, 128, 8, 2)),
            "dw": (Tile(256, 32, 0, 64, 128, 8, 2), Tile(512, 32, 0, 64, 128, 8, 3)),
        },
        "tf32": {
            "fwd": (
                Tile(256, 32, 32, 32, 64, 8, 2),
                Tile(448, 32, 32, 16, 128, 8, 2),
                Tile(512, 16, 32, 16, 128, 8, 2),
            ),
            "dx": (
                Tile(256, 32, 32, 32, 64, 8, 2),
                Tile(448, 32, 32, 16, 128, 8, 2),
                Tile(512, 16, 32, 16, 128, 8, 2),
            ),
            "dw": (Tile(256, 32, 0, 64, 64, 8, 2), Tile(512, 32, 0, 64, 128, 8, 2)),
        },
        "ieee": {
            "fwd": (Tile(256, 32, 32, 32, 64, 8, 2), Tile(512, 16, 32, 16, 128, 8, 2)),
            # Parts of 128 at H = 512 spill under Triton 3.9 with all terms.
            "dx": (Tile(256, 32, 32, 32, 64, 8, 2), Tile(512, 16, 32, 16, 256, 8, 2)),
            "dw": _IEEE["dw"],
        },
    },
    90: {
        "half": {
            "fwd": (
                Tile(64, 128, 64, 64, 64, 8, 3),
                Tile(192, 128, 64, 64, 128, 8, 3),
                Tile(256, 128, 64, 32, 64, 8, 3),
                Tile(320, 64, 64, 64, 128, 8, 3),
                Tile(512, 64, 64, 32, 128, 8, 2),
            ),
            "dx": (
                Tile(64, 128, 64, 64, 64, 8, 3),
                Tile(192, 128, 64, 32, 64, 8, 3),
                Tile(256, 64, 64, 64, 64, 8, 3),
                Tile(320, 64, 64, 32, 128, 8, 3),
                # 64 rows at H = 512 spill under Triton 3.9.
                Tile(512, 32, 64, 32, 128, 8, 2),
            ),
            "dw": (
                Tile(64, 64, 0, 128, 64, 8, 3),
                Tile(256, 64, 0, 128, 128, 8, 3),
                Tile(512, 64, 0, 64, 128, 8, 2),
            ),
        },
        "amp": {
            "fwd": (
                Tile(64, 64, 32, 32, 64, 8, 2),
                Tile(192, 128, 32, 32, 64, 8, 3),
                Tile(256, 64, 32, 32, 64, 8, 2),
                Tile(448, 64, 32, 32, 128, 8, 2),
                # 64 rows at H = 512 spill under Triton 3.9.
                Tile(512, 32, 32, 32, 128, 8, 3),
            ),
            "dx": (
                Tile(64, 64, 32, 32, 64, 8, 2),
                Tile(256, 64, 32, 32, 64, 8, 2),
                # 32 columns of K at H = 448 spill under Triton 3.9.
                Tile(448, 64, 64, 32, 128, 8, 2),
                # 64 rows at H = 512 spill with all terms.
                Tile(512, 32, 32, 32, 128, 8, 3),
            ),
            "dw": (
                Tile(64, 32, 0, 64, 64, 8, 2),
                Tile(256, 64, 0, 128, 128, 8, 2),
                Tile(512, 64, 0, 64, 128, 8, 2),
            ),
        },
        "tf32": {
            "fwd": (
                Tile(64, 64, 32, 32, 64, 8, 2),
                Tile(256, 64, 32, 32, 64, 8, 2),
                Tile(384, 64, 32, 32, 128, 8, 2),
                # Under Triton 3.9 32 columns of K at H = 448 spill, and 64 rows at H = 512.
                Tile(448, 64, 16, 16, 128, 8, 3),
                Tile(512, 32, 32, 32, 128, 8, 3),
            ),
            "dx": (
                Tile(64, 64, 32, 32, 64, 8, 2),
                Tile(256, 64, 32, 32, 64, 8, 2),
                Tile(384, 64, 32, 32, 128, 8, 2),
                # 64 rows at H = 448 spill under Triton 3.9 with all terms.
                Tile(512, 32, 32, 32, 128, 8, 3),
            ),
            "dw": (Tile(256, 32, 0, 64, 64, 8, 2), Tile(512, 32, 0, 64, 128, 8, 2)),
        },
        "ieee": _IEEE,
    },
    100: {
        "half": {
            "fwd": (
                Tile(64, 128, 64, 64, 64, 8, 3),
                Tile(192, 128, 64, 64, 64, 8, 3),
                Tile(256, 128, 64, 32, 64, 8, 3),
                Tile(512, 64, 64, 32, 128, 8, 2),
            ),
            "dx": (
                Tile(64, 128, 64, 64, 64, 8, 3),
                Tile(192, 128, 64, 64, 64, 8, 3),
                Tile(256, 128, 64, 32, 64, 8, 3),
                Tile(320, 64, 64, 32, 128, 8, 3),
                Tile(512, 32, 64, 32, 128, 8, 2),
            ),
            "dw": (
                Tile(64, 64, 0, 128, 64, 8, 3),
                Tile(256, 64, 0, 128, 128, 8, 3),
                Tile(512, 64, 0, 64, 128, 8, 2),
            ),
        },
        "amp": {
            "fwd": (
                Tile(64, 64, 32, 32, 64, 8, 2),
                Tile(256, 64, 32, 32, 64, 8, 2),
                Tile(384, 64, 32, 32, 128, 8, 3),
                Tile(512, 32, 32, 32, 128, 8, 3),
            ),
            "dx": (
                Tile(64, 64, 32, 32, 64, 8, 2),
                Tile(256, 64, 32, 32, 64, 8, 2),
                Tile(384, 64, 32, 32, 128, 8, 3),
                Tile(512, 32, 32, 32, 128, 8, 3),
            ),
            "dw": (
                Tile(256, 32, 0, 64, 64, 8, 2),
                Tile(384, 64, 0, 64, 128, 8, 2),
                Tile(512, 32, 0, 32, 128, 8, 3),
            ),
        },
        "tf32": {
            "fwd": (
                Tile(256, 64, 32, 32, 64, 8, 2),
                Tile(384, 64, 32, 32, 128, 8, 2),
                Tile(512, 32, 32, 32, 128, 8, 3),
            ),
            "dx": (
                Tile(256, 64, 32, 32, 64, 8, 2),
                # Two stages spill under Triton 3.9.
                Tile(320, 64, 32, 32, 128, 8, 3),
                Tile(384, 64, 32, 16, 128, 8, 4),
                Tile(512, 32, 32, 32, 128, 8, 3),
            ),
            "dw": (
                Tile(256, 32, 0, 64, 64, 8, 2),
                Tile(384, 64, 0, 64, 128, 8, 2),
                Tile(512, 32, 0, 32, 128, 8, 2),
            ),
        },
        "ieee": _IEEE,
    },
}

# Smaller tiles beside those of `TILES`, the same for every family, for few rows and for a last wave that would be
# short: from 64 rows on wgmma and tcgen05 serve, below them mma.sync.
FEW: _Table = {
    "half": {
        "fwd": (Tile(256, 64, 64, 32, 128, 8, 3), Tile(512, 32, 64, 32, 128, 8, 2)),
        "dx": (Tile(256, 64, 64, 32, 128, 8, 3), Tile(512, 32, 64, 32, 128, 8, 2)),
        "dw": (),
    },
    "amp": {
        "fwd": (Tile(256, 32, 32, 32, 64, 8, 2), Tile(512, 32, 32, 16, 128, 8, 2)),
        "dx": (Tile(256, 32, 32, 32, 64, 8, 2), Tile(512, 32, 32, 16, 128, 8, 2)),
        "dw": (),
    },
    "tf32": {"fwd": (), "dx": (), "dw": ()},
    "ieee": {"fwd": (), "dx": (), "dw": ()},
}
