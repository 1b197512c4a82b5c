"""The regimes of the CUDA kernels' numeric checks: data only. Shapes are small; D and H are what each family takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

import aim_fast
from judge import Tensors
from numeric_cases import (
    BF16,
    FP16,
    FP32,
    Case,
    build,
    columns,
    expanded_rows,
    misaligned,
    one_number,
    padded_rows,
    same,
    turned,
)


def aligned_rows(t: Tensor) -> Tensor:
    """Rows that lie 16 elements further apart than they are long: what the kernels read in place."""
    return pad(t, (0, 16))[..., :-16]


# What all families take, in 16 bits: H of 64, 128, 192, 256; D a multiple of 64.
BOTH = {
    # Rows: none, one, few, about a tile, prime, real; D and H: real ratios.
    "empty": Case((0, 64), 64, BF16, residual_as=same, scale=(64,)),
    "one_row": Case((1, 768), 192, BF16, "silu", residual_as=same, scale=(1,)),
    "vector": Case((64,), 64, FP16),
    "seven": Case((7, 512), 128, FP16, "tanh", skip=False, alpha=0.5, residual_as=same),
    "rows_63": Case((63, 256), 64, FP16, "leaky_relu", residual_as=aligned_rows, row_scale=(63,)),
    "rows_65": Case((65, 768), 192, BF16, residual_as=same, scale=(768,)),
    "image": Case((197, 768), 192, BF16),
    "image_fp16": Case((197, 768), 192, FP16),
    "image_l": Case((197, 1024), 256, BF16, residual_as=same, row_scale=(197,)),
    "swin_s1": Case((523, 128), 64, BF16, skip=False),
    "swin_s2": Case((331, 256), 64, FP16, scale=(256,)),
    "adaptformer": Case((211, 768), 64, BF16, "relu", skip=False, alpha=0.1, residual_as=same),
    "prime_wide": Case((211, 64), 256, FP16, "relu", bias=False, row_scale=(211,), scale=(1,)),
    # Layouts of x, dy, residual and the weights.
    "transposed": Case((16, 13, 64), 64, BF16, x_as=turned(1, 0, 2), dy_as=turned(1, 0, 2)),
    "transposed_residual": Case((8, 26, 128), 64, FP16, skip=False, residual_as=turned(1, 0, 2)),
    "turned_three": Case((4, 5, 6, 64), 64, BF16, x_as=turned(2, 1, 0, 3), dy_as=turned(0, 2, 1, 3), residual_as=same),
    "four_leading": Case((2, 3, 4, 5, 64), 64, BF16, x_as=turned(3, 1, 2, 0, 4), residual_as=turned(1, 0, 3, 2, 4)),
    "aligned": Case((97, 128), 64, BF16, x_as=aligned_rows, dy_as=aligned_rows, residual_as=aligned_rows),
    "padded": Case((97, 128), 64, FP16, x_as=padded_rows, dy_as=padded_rows, residual_as=padded_rows),
    "columns": Case((31, 64), 64, BF16, x_as=columns, dy_as=columns, residual_as=columns, w_as=columns),
    "misaligned": Case((53, 64), 64, BF16, x_as=misaligned, dy_as=misaligned, residual_as=misaligned, w_as=misaligned),
    "expanded": Case((9, 23, 64), 64, FP16, x_as=expanded_rows, dy_as=expanded_rows, residual_as=expanded_rows),
    "summed": Case((130, 128), 64, BF16, dy_as=one_number),
    "weights_transposed": Case((53, 128), 64, FP16, w_as=lambda t: t.t().contiguous().t() if t.dim() == 2 else t),
    # scale, row_scale, biases.
    "sample_scale": Case((6, 33, 64), 64, BF16, row_scale=(6, 1), x_as=turned(1, 0, 2)),
    "token_scale": Case((33, 6, 64), 128, FP16, row_scale=(33, 6), residual_as=same, alpha=0.5),
    "last_scale": Case((33, 6, 64), 64, BF16, row_scale=(6,), scale=(64,), skip=False),
    "no_bias": Case((101, 128), 192, BF16, bias=False, skip=False),
    # Activations, into their tails.
    **{f"{name}_all": Case((61, 64), 64, FP16, name, spread=4.0) for name in aim_fast.ACTIVATIONS},
}
# D or H that is no multiple of a tile, and what only one family takes.
ONLY = {
    "hopper": {
        "sam_h": Case((67, 1280), 320, BF16),
        "sam_h_fp16": Case((131, 192), 320, FP16, "quick_gelu", residual_as=same, scale=(192,), row_scale=(131,)),
    },
    "tiles": {
        "least": Case((5, 4), 4, FP32, scale=(1,)),
        "h36": Case((65, 44), 36, FP32, residual_as=same, row_scale=(65,)),
        "dinov2": Case((67, 1024), 512, FP32, "silu", skip=False, scale=(1024,)),
        "large": Case((300, 768), 192, FP32, "tanh", alpha=0.5, residual_as=turned(0, 1)),
        "least_bf16": Case((5, 8), 8, BF16, scale=(1,)),
        "h40_fp16": Case((65, 72), 40, FP16, residual_as=same, row_scale=(65,)),
        "dinov2_bf16": Case((67, 1024), 512, BF16, "silu", skip=False, scale=(1024,)),
        "large_bf16": Case((300, 768), 192, BF16, "tanh", alpha=0.5, residual_as=turned(0, 1)),
    },
    "ampere": {
        "least": Case((5, 8), 8, BF16, scale=(1,)),
        "h8": Case((65, 40), 8, FP16, residual_as=same),
        "h24": Case((197, 96), 24, BF16, "silu", scale=(96,), row_scale=(197,)),
        "h200": Case((63, 104), 200, FP16, residual_as=turned(0, 1), bias=False),
        "h136": Case((211, 72), 136, BF16, "quick_gelu", skip=False, alpha=-0.5),
        "h248": Case((33, 1000), 248, BF16, row_scale=(33,)),
    },
}
# What a family's products are in, the narrowest last.
DTYPES = {"hopper": (BF16, FP16), "ampere": (BF16, FP16), "tiles": (FP32, BF16, FP16)}
# One of the narrow dtypes of each family, and what else takes a way of its own.
FORMS = [*((family, dtypes[-1]) for family, dtypes in DTYPES.items()), ("tiles", FP32)]
CASES = {
    **{f"{family}-{name}": case for family in DTYPES for name, case in BOTH.items()},
    **{f"tiles-fp32-{name}": replace(case, dtype=FP32) for name, case in BOTH.items()},
    **{f"{family}-{name}": case for family, cases in ONLY.items() for name, case in cases.items()},
}
# Every way to share out the rows.
PLANS = {"hopper": 4, "ampere": 7, "tiles": 3}


def full(dtype: torch.dtype, M: int = 197, D: int = 128, H: int = 64) -> tuple[Tensors, Tensor, dict[str, Any]]:
    """The tensors of a call with every term and every gradient, dy, and the options."""
    return build(Case((M, D), H, dtype, residual_as=same, scale=(D,), row_scale=(M,)))
