"""A small AIM vision transformer: a frozen image model that bottleneck adapters turn into a video model.

The block follows AIM (Yang et al., ICLR 2023). What differs is only where the adds, scales and drop-path factors are
written: here the adapter takes them as arguments, so that a fused one does them in its single pass over memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
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


ADAPTERS: dict[str, Callable[..., nn.Module]] = {"aim_fast": aim_fast.Adapter, "eager": EagerAdapter}


def drop_path(x: Tensor, rate: float) -> Tensor | None:
    """The drop-path factors [N, 1, 1] for x [N, B, T, D]: AIM's layout is token first, so one is drawn per token."""
    if not rate:
        return None
    return (torch.rand(len(x), 1, 1) >= rate) / (1 - rate)


class Block(nn.Module):
    """Temporal, spatial and joint adaptation of one frozen block; x [N, B, T, D] holds the tokens first."""

    def __init__(self, D: int, heads: int, adapter: Callable[..., nn.Module], drop_path_rate: float) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(D, heads)
        self.ln_1 = nn.LayerNorm(D)
        self.ln_2 = nn.LayerNorm(D)
        self.mlp = nn.Sequential(nn.Linear(D, 4 * D), aim_fast.QuickGELU(), nn.Linear(4 * D, D))
        self.T_Adapter = adapter(D, skip_connect=False)
        self.S_Adapter = adapter(D)
        self.MLP_Adapter = adapter(D, skip_connect=False)
        self.drop_path_rate = drop_path_rate

    def attention(self, x: Tensor) -> Tensor:
        """Self-attention along dim 0 of x [L, ..., D]. The temporal and the spatial pass share these weights."""
        rows = x.flatten(1, -2)
        return self.attn(rows, rows, rows, need_weights=False)[0].view(x.shape)

    def forward(self, x: Tensor) -> Tensor:
        rate = self.drop_path_rate if self.training else 0.0
        # Frames attend to each other. The adapter reads the result through strides and writes in x's layout.
        over_time = self.attention(self.ln_1(x).transpose(0, 2)).transpose(0, 2)  # [N, B, T, D]
        x = self.T_Adapter(over_time, row_scale=drop_path(x, rate), residual=x)
        x = self.S_Adapter(self.attention(self.ln_1(x)), residual=x)
        normed = self.ln_2(x)
        return self.MLP_Adapter(normed, scale=0.5, row_scale=drop_path(x, rate), residual=x + self.mlp(normed))


class AimViT(nn.Module):
    """Clips [B, T, 3, size, size] to class scores [B, classes]; only the parameters named in TRAINED are trained."""

    def __init__(
        self,
        adapter: str,
        classes: int,
        *,
        frames: int,
        size: int,
        width: int,
        depth: int,
        patch: int = 16,
        drop_path_rate: float = 0.2,
    ) -> None:
        super().__init__()
        tokens = (size // patch) ** 2 + 1
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(tokens, width))
        self.temporal_embedding = nn.Parameter(torch.zeros(1, frames, width))
        self.ln_pre = nn.LayerNorm(width)
        rates = torch.linspace(0, drop_path_rate, depth).tolist()
        self.blocks = nn.Sequential(*(Block(width, width // 64, ADAPTERS[adapter], rate) for rate in rates))
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
