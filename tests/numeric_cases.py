"""The regimes of the numeric checks: shapes, dtypes, layouts, options. Data only, and without pytest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

import aim_fast
from judge import Tensors, make_inputs

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


def turned(*order: int) -> Callable[[Tensor], Tensor]:
    """The same values and shape, laid out in memory as if the dims had been permuted from `order`."""
    inverse = tuple(order.index(i) for i in range(len(order)))
    return lambda t: t.permute(order).contiguous().permute(inverse)


def expanded_rows(t: Tensor) -> Tensor:
    return t[..., :1, :].expand(t.shape)


def one_number(t: Tensor) -> Tensor:
    """What y.sum().backward() sends: stride 0 everywhere."""
    return t.new_ones(()).expand(t.shape)


def misaligned(t: Tensor) -> Tensor:
    """One element past an aligned address."""
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


def padded_rows(t: Tensor) -> Tensor:
    """Rows that lie 3 elements further apart than they are long."""
    return torch.nn.functional.pad(t, (0, 3))[..., :-3]


def columns(t: Tensor) -> Tensor:
    """Stride 2 on the last dim."""
    return t.repeat_interleave(2, -1)[..., ::2]


def same(t: Tensor) -> Tensor:
    return t


@dataclass(frozen=True)
class Case:
    """One regime. `row_scale` and `scale` are shapes; x_as, dy_as and residual_as change strides, not values."""

    shape: tuple[int, ...]
    H: int
    dtype: torch.dtype = FP32
    activation: str = "gelu"
    skip: bool = True
    bias: bool = True
    alpha: float = 1.0
    scale: tuple[int, ...] | None = None
    row_scale: tuple[int, ...] | None = None
    residual_as: Callable[[Tensor], Tensor] | None = None
    x_as: Callable[[Tensor], Tensor] = same
    dy_as: Callable[[Tensor], Tensor] = same
    w_as: Callable[[Tensor], Tensor] = same
    spread: float = 1.0  # x is this much larger: into the tails of the activation


CASES = {
    # Rows: none, one, few, prime, real; D and H: ragged and real.
    "empty": Case((0, 64), 16, residual_as=same, scale=(64,)),
    "empty_bf16": Case((3, 0, 64), 16, BF16),
    "vector": Case((64,), 16),
    "one_row": Case((1, 768), 192, residual_as=same),
    "one_row_bf16": Case((1, 768), 192, BF16, "silu", scale=(1,)),
    "one_row_fp16": Case((1, 64), 16, FP16, "tanh"),
    "one_by_one": Case((5, 1), 1, scale=(1,)),
    "one_column": Case((33, 1), 7, BF16),
    "one_hidden": Case((33, 70), 1, skip=False),
    "seven": Case((7, 256), 64),
    "seven_bf16": Case((7, 768), 192, BF16, skip=False, alpha=0.5, residual_as=same),
    "seven_ragged_fp16": Case((7, 37), 5, FP16, "quick_gelu", row_scale=(7,)),
    "sixteen": Case((16, 100), 24, scale=(100,), row_scale=(16,)),
    "seventeen": Case((17, 100), 24, scale=(100,), row_scale=(17,)),
    "few_ragged": Case((13, 75), 21, activation="silu", residual_as=padded_rows, scale=(75,)),
    "few_ragged_bf16": Case((13, 75), 21, BF16, residual_as=padded_rows, row_scale=(13,)),
    "few_ragged_fp16": Case((15, 75), 21, FP16, "leaky_relu", residual_as=padded_rows),
    "two_rows": Case((2, 100), 24, scale=(1,), alpha=0.5, dy_as=expanded_rows),
    "three_rows_bf16": Case((3, 75), 40, BF16, scale=(75,), row_scale=(3,)),
    "few_factors": Case((6, 48), 12, scale=(48,), row_scale=(6,), alpha=-0.5, skip=False),
    "few_wide": Case((14, 1280), 320, w_as=columns),
    "few_transposed": Case(
        (2, 3, 2, 70), 18, x_as=turned(2, 0, 1, 3), residual_as=turned(1, 2, 0, 3), row_scale=(3, 1)
    ),
    "prime_ragged": Case((211, 37), 5, scale=(37,), residual_as=padded_rows),
    "prime_ragged_bf16": Case((211, 37), 5, BF16, scale=(37,), residual_as=padded_rows),
    "prime_ragged_fp16": Case((211, 37), 5, FP16, skip=False, scale=(1,)),
    "odd_pairs_bf16": Case((67, 35), 33, BF16, "silu"),
    "image": Case((197, 768), 192),
    "image_bf16": Case((197, 768), 192, BF16),
    "image_fp16": Case((197, 768), 192, FP16),
    "tail": Case((1576, 768), 192),
    "tail_bf16": Case((1576, 768), 192, BF16),
    "tail_fp16": Case((1576, 96), 24, FP16),
    "prime": Case((1499, 128), 32, skip=False),
    "prime_bf16": Case((1499, 128), 32, BF16, skip=False),
    "h196": Case((61, 768), 196, alpha=-0.5),
    "h196_bf16": Case((61, 768), 196, BF16, "gelu_tanh"),
    "h196_fp16": Case((61, 384), 196, FP16),
    "sam_h": Case((67, 1280), 320),
    "sam_h_bf16": Case((67, 1280), 320, BF16),
    "dinov2": Case((67, 1024), 512, activation="relu"),
    "dinov2_bf16": Case((67, 1024), 512, BF16, "relu"),
    "wide_hidden": Case((29, 40), 1100),
    # So many rows that sums over them need care: Swin's stage 1, narrow.
    "long": Case((401408, 8), 4, scale=(8,)),
    "long_summed": Case((401408, 8), 4, scale=(1,), dy_as=one_number),
    "long_bf16": Case((401408, 8), 4, BF16, skip=False),
    # Layouts of x, dy, residual and the weights.
    "transposed": Case((16, 13, 64), 16, x_as=turned(1, 0, 2), dy_as=turned(1, 0, 2)),
    "transposed_bf16": Case((16, 13, 64), 16, BF16, x_as=turned(1, 0, 2), residual_as=same),
    "transposed_residual": Case((8, 26, 48), 12, skip=False, residual_as=turned(1, 0, 2)),
    "transposed_three": Case((4, 5, 6, 40), 8, x_as=turned(2, 0, 1, 3), residual_as=turned(1, 2, 0, 3)),
    "transposed_three_bf16": Case((4, 5, 6, 40), 8, BF16, x_as=turned(2, 1, 0, 3), dy_as=turned(0, 2, 1, 3)),
    "four_leading": Case((2, 3, 4, 5, 24), 8, x_as=turned(3, 1, 2, 0, 4), residual_as=turned(1, 0, 3, 2, 4)),
    "nine_leading": Case((2,) * 9 + (8,), 4, x_as=turned(8, 7, 6, 5, 4, 3, 2, 1, 0, 9), residual_as=same),
    "columns": Case((31, 40), 8, x_as=columns, dy_as=columns, residual_as=columns),
    "padded": Case((197, 48), 12, x_as=padded_rows, dy_as=padded_rows),
    "padded_fp16": Case((97, 48), 12, FP16, x_as=padded_rows, dy_as=padded_rows, residual_as=turned(0, 1)),
    "misaligned": Case((53, 64), 16, x_as=misaligned, dy_as=misaligned, residual_as=misaligned, w_as=misaligned),
    "misaligned_bf16": Case((53, 64), 16, BF16, x_as=misaligned, dy_as=misaligned, w_as=misaligned),
    "expanded_x": Case((9, 23, 48), 12, x_as=expanded_rows, dy_as=expanded_rows, residual_as=expanded_rows),
    "expanded_dy_bf16": Case((9, 23, 48), 12, BF16, dy_as=expanded_rows),
    "summed": Case((130, 48), 12, dy_as=one_number),
    "weights_transposed": Case((53, 72), 20, w_as=lambda t: t.t().contiguous().t() if t.dim() == 2 else t),
    "weights_strided": Case((53, 72), 20, BF16, w_as=columns),
    # scale, row_scale, biases.
    "scale_one": Case((101, 64), 16, FP32, "silu", scale=(1,)),
    "scale_wide_bf16": Case((101, 64), 16, BF16, scale=(64,), skip=False),
    "sample_scale": Case((6, 33, 64), 16, row_scale=(6, 1), scale=(64,)),
    "sample_scale_bf16": Case((6, 33, 64), 16, BF16, row_scale=(6, 1), x_as=turned(1, 0, 2)),
    "token_scale": Case((33, 6, 64), 16, row_scale=(33, 6), residual_as=same, alpha=0.5),
    "last_scale_fp16": Case((33, 6, 64), 16, FP16, row_scale=(6,)),
    "one_scale": Case((33, 6, 64), 16, row_scale=(1, 1), skip=False),
    "no_bias": Case((101, 64), 16, bias=False),
    "no_bias_bf16": Case((101, 64), 16, BF16, "relu", bias=False, skip=False, scale=(1,)),
    "no_bias_fp16": Case((101, 64), 16, FP16, bias=False),
    # Activations, into their tails; fp32 is what pins the formulas.
    **{f"{name}_fp32": Case((301, 48), 24, FP32, name, spread=4.0) for name in aim_fast.ACTIVATIONS},
    **{f"{name}_bf16": Case((101, 48), 24, BF16, name, skip=False, spread=4.0) for name in aim_fast.ACTIVATIONS},
    **{f"{name}_fp16": Case((101, 48), 24, FP16, name, skip=False) for name in aim_fast.ACTIVATIONS},
}


def with_more_rows(case: Case, least: int) -> Case:
    """The same with its first dim so much longer that it has more rows than `least`."""
    factor = least // prod(case.shape[:-1]) + 1
    row_scale = case.row_scale
    if row_scale and len(row_scale) == len(case.shape) - 1 and row_scale[0] > 1:
        row_scale = (row_scale[0] * factor, *row_scale[1:])
    return replace(case, shape=(case.shape[0] * factor, *case.shape[1:]), row_scale=row_scale)


# Cases of up to 256 rows as calls of more, which the CPU kernel runs another way. Not with one hidden unit: db1 is then
# a single number, which eager may hit by luck.
MORE_ROWS = {
    f"{name}_more_rows": with_more_rows(case, 400)
    for name, case in CASES.items()
    if 12 < prod(case.shape[:-1]) <= 256 and case.H > 1
}


def build(case: Case) -> tuple[Tensors, Tensor, dict[str, Any]]:
    """The tensors of a case, the gradient of y, and the options of the call."""
    inputs = make_inputs(case.shape, case.H, case.dtype, bias=case.bias)
    generator = torch.Generator().manual_seed(1)

    def draw(shape: tuple[int, ...], dtype: torch.dtype = case.dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    tensors = {name: None if t is None else case.w_as(t) for name, t in inputs.items()}
    tensors["x"] = case.x_as(inputs["x"] * case.spread)
    if case.residual_as is not None:
        tensors["residual"] = case.residual_as(draw(case.shape))
    if case.scale is not None:
        tensors["scale"] = draw(case.scale)
    if case.row_scale is not None:
        keep = 0.75
        tensors["row_scale"] = (torch.rand(case.row_scale, generator=generator) < keep).to(FP32) / keep
    dy = case.dy_as(draw(case.shape))
    options: dict[str, Any] = {"activation": case.activation, "skip": case.skip}
    return tensors, dy, options if case.scale is not None else options | {"scale": case.alpha}
