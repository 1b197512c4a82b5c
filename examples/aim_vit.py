"""AIM's vision transformer: a frozen image model that bottleneck adapters turn into a video model.

The block follows AIM (Yang et al., ICLR 2023), in two ways to write it. `PlainBlock` is as AIM has it: regroup the
tokens so that frames attend to each other, adapt, regroup back, drop paths, add. In `Block` the adapter takes the add,
the scale and the drop-path factors as arguments, reads what attention leaves through its strides and writes in x's
layout, so that a fused one does all of it in its single pass over memory, and nothing is regrouped. Both give equal
results and gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import aim_fast

TRAINED = ("Adapter", "temporal_embedding", "ln_post", "cls_head")


class EagerAdapter(nn.Module):
    """AIM's adapter as everyone writes it, with the tail of the block behind it."""

    def __init__(self, D_features: int, mlp_ratio: float = 0.25, skip_connect: bool = True) -> None:
        super().__init__()
        self.skip_connect = skip_connect
        self.act = nn.GELU()
        self.D_fc1 = nn.Linear(D_features, int(D_features * mlp_ratio))
        self.D_fc2 = nn.Linear(int(D_features * mlp_ratio), D_features)

    def forward(
        self, x: Tensor, *, scale: float = 1.0, row_scale: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        y = self.D_fc2(self.act(self.D_fc1(x)))
        if scale != 1.0:
            y = scale * y
        if row_scale is not None:
            y = y * row_scale.unsqueeze(-1)
        if self.skip_connect:
            y = x + y
        return y if residual is None else residual + y


def drop_path(x: Tensor, rate: float) -> Tensor | None:
    """The drop-path factors [N, 1, 1] for x [N, ...]: AIM's layout is token first, so one is drawn per token."""
    if not rate:
        return None
    return (torch.rand(len(x), 1, 1, device=x.device) >= rate).to(x.dtype) / (1 - rate)


class Block(nn.Module):
    """Temporal, spatial and joint adaptation of one frozen block; x [N, B, T, D] holds the tokens first.

    two_temporal: a second temporal adapter, before the attention over time; AIM has it on Something-Something, where
    the joint adapter's scale is 1 instead of 0.5.
    """

    def __init__(
        self,
        D: int,
        heads: int,
        adapter: Callable[..., nn.Module],
        drop_path_rate: float = 0.0,
        *,
        two_temporal: bool = False,
    ) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(D, heads)
        self.ln_1 = nn.LayerNorm(D)
        self.ln_2 = nn.LayerNorm(D)
        self.mlp = nn.Sequential(nn.Linear(D, 4 * D), aim_fast.QuickGELU(), nn.Linear(4 * D, D))
        self.T_Adapter_in = adapter(D) if two_temporal else nn.Identity()
        self.T_Adapter = adapter(D, skip_connect=False)
        self.S_Adapter = adapter(D)
        self.MLP_Adapter = adapter(D, skip_connect=False)
        self.scale = 1.0 if two_temporal else 0.5
        self.drop_path_rate = drop_path_rate

    def attention(self, x: Tensor, along: int) -> Tensor:
        """Self-attention along dimension 0 (tokens) or 2 (frames) of x [N, B, T, D], by the weights of `attn`.

        q, k and v are read where the projection leaves them, and so is what attention gives: nothing is copied.
        """
        projected = F.linear(x, self.attn.in_proj_weight, self.attn.in_proj_bias)  # [N, B, T, 3 D]
        first = projected.movedim(along, 2)  # [S1, S2, L, 3 D]: S1 S2 sequences of length L
        heads = first.flatten(0, 1).unflatten(-1, (3, self.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads)  # [S1 S2, heads, L, D / heads]
        rows = mixed.transpose(1, 2).flatten(2).unflatten(0, first.shape[:2])  # [S1, S2, L, D]
        # Kernels lay their result out by sequences, or as q was. The adapter after it takes either.
        if rows.is_contiguous():
            return self.attn.out_proj(rows).movedim(2, along)
        return self.attn.out_proj(rows.movedim(2, along))

    def forward(self, x: Tensor) -> Tensor:
        rate = self.drop_path_rate if self.training else 0.0
        over_time = self.attention(self.T_Adapter_in(self.ln_1(x)), along=2)
        x = self.T_Adapter(over_time, row_scale=drop_path(x, rate), residual=x)
        x = self.S_Adapter(self.attention(self.ln_1(x), along=0), residual=x)
        normed = self.ln_2(x)
        return self.MLP_Adapter(normed, scale=self.scale, row_scale=drop_path(x, rate), residual=x + self.mlp(normed))


class PlainBlock(Block):
    """The same block as AIM has it: copies to regroup the tokens, and every add an operation of its own."""

    def forward(self, x: Tensor) -> Tensor:
        (N, B, T, D), rate = x.shape, self.drop_path_rate if self.training else 0.0

        def dropped(branch: Tensor) -> Tensor:
            factors = drop_path(branch, rate)
            return branch if factors is None else factors * branch

        def attend(rows: Tensor) -> Tensor:
            return self.attn(rows, rows, rows, need_weights=False)[0]

        x = x.reshape(N, B * T, D)
        over_time = self.ln_1(x).view(N, B, T, D).permute(2, 1, 0, 3).reshape(T, B * N, D)
        over_time = self.T_Adapter(attend(self.T_Adapter_in(over_time)))
        x = x + dropped(over_time.view(T, B, N, D).permute(2, 1, 0, 3).reshape(N, B * T, D))
        x = x + self.S_Adapter(attend(self.ln_1(x)))
        normed = self.ln_2(x)
        x = x + self.mlp(normed) + dropped(self.scale * self.MLP_Adapter(normed))
        return x.view(N, B, T, D)


# A block and its adapter: fused; the same with plain adapters; and all of it plain.
BLOCKS: dict[str, tuple[type[Block], Callable[..., nn.Module]]] = {
    "aim_fast": (Block, aim_fast.Adapter),
    "eager": (Block, EagerAdapter),
    "plain": (PlainBlock, EagerAdapter),
}


class AimViT(nn.Module):
    """Clips [B, T, 3, size, size] to class scores [B, classes]; only the parameters named in TRAINED are trained.

    kind: one of BLOCKS. The default sizes are those of ViT-B/16.
    """

    def __init__(
        self,
        kind: str,
        classes: int,
        *,
        frames: int = 8,
        size: int = 224,
        width: int = 768,
        depth: int = 12,
        patch: int = 16,
        drop_path_rate: float = 0.2,
        two_temporal: bool = False,
    ) -> None:
        super().__init__()
        tokens = (size // patch) ** 2 + 1
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(tokens, width))
        self.temporal_embedding = nn.Parameter(torch.zeros(1, frames, width))
        self.ln_pre = nn.LayerNorm(width)
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        block, adapter = BLOCKS[kind]
        self.blocks = nn.Sequential(
            *(block(width, width // 64, adapter, rate, two_temporal=two_temporal) for rate in rates)
        )
        self.ln_post = nn.LayerNorm(width)
        self.cls_head = nn.Linear(width, classes)
        aim_fast.init_adapters(self)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(any(key in name for key in TRAINED))

    def forward(self, clips: Tensor) -> Tensor:
        B, T = clips.shape[:2]
        x = self.conv1(clips.flatten(0, 1)).flatten(2).transpose(1, 2)  # [B T, N - 1, D]
        x = torch.cat([self.class_embedding.to(x.dtype).expand(B * T, 1, -1), x], 1) + self.positional_embedding
        x = x.view(B, T, *x.shape[1:]) + self.temporal_embedding.unsqueeze(2)  # [B, T, N, D]
        x = self.ln_pre(x).permute(2, 0, 1, 3).contiguous()  # [N, B, T, D]
        x = self.ln_post(self.blocks(x)[0])  # the class token of each frame [B, T, D]
        return self.cls_head(x.mean(1))

    def adapters(self) -> list[nn.Module]:
        """The adapters, in the order in which they run within a block."""
        return [m for name, m in self.named_modules() if name.endswith("Adapter")]
