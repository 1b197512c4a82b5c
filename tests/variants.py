"""Adapters as public code bases have them, in other words: those that `patch` takes, each of width D = 24."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from original import Original

D, H = 24, 6


class Bottleneck(nn.Module):
    """The parts of AIM's adapter; what forward does is left to the others."""

    def __init__(self, act_layer: Callable[[], nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.act = act_layer()
        self.D_fc1 = nn.Linear(D, H)
        self.D_fc2 = nn.Linear(H, D)

    def branch(self, x: Tensor) -> Tensor:
        return self.D_fc2(self.act(self.D_fc1(x)))


class Spatial(Bottleneck):
    """Swin's spatial adapter: always a residual, and no attribute that says so."""

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + x


class Temporal(Bottleneck):
    """Swin's temporal adapter of one variant: never a residual."""

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x)


class Linear2(nn.Module):
    """Takes act_layer and ignores it: linear."""

    def __init__(self, act_layer: Callable[[], nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.D_fc1 = nn.Linear(D, H)
        self.D_fc2 = nn.Linear(H, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.D_fc2(self.D_fc1(x))


class ActUnused(Bottleneck):
    """Holds a GELU and does not use it."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.D_fc2(self.D_fc1(x))


class Scaled(nn.Module):
    """A float scale, dropout on the hidden, and as one code base has it no activation."""

    def __init__(self, scale: float = 0.7, act_layer: Callable[[], nn.Module] = nn.Identity, p: float = 0.0) -> None:
        super().__init__()
        self.down = nn.Linear(D, H)
        self.act = act_layer()
        self.up = nn.Linear(H, D)
        self.drop = nn.Dropout(p)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.up(self.drop(self.act(self.down(x))))


class ScaledSum(nn.Module):
    """The scale multiplies the skip too; a number or a parameter."""

    def __init__(self, scale: float | Tensor, skip: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(D, H)
        self.fc2 = nn.Linear(H, D)
        self.gelu = nn.GELU()
        self.skip = skip
        self.scale = nn.Parameter(scale) if isinstance(scale, Tensor) else scale

    def forward(self, x: Tensor) -> Tensor:
        f = self.fc2(self.gelu(self.fc1(x)))
        return self.scale * (f + x) if self.skip else self.scale * f


class Absolute(nn.Module):
    """The hidden width is given, not a ratio."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.D_fc1 = nn.Linear(D, hidden)
        self.act = nn.ReLU(inplace=True)
        self.D_fc2 = nn.Linear(hidden, D)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.D_fc2(self.act(self.D_fc1(x)))


class QuickGELU(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z * torch.sigmoid(1.702 * z)


class Renamed(nn.Module):
    """Other names for everything, the up-projection first."""

    def __init__(self, width: int = D, down_ratio: int = 4, skip_connection: bool = True) -> None:
        super().__init__()
        self.expand = nn.Linear(width // down_ratio, width)
        self.reduce = nn.Linear(width, width // down_ratio)
        self.non_linearity = QuickGELU()
        self.skip_connection = skip_connection

    def forward(self, tokens: Tensor) -> Tensor:
        y = self.expand(self.non_linearity(self.reduce(tokens)))
        return tokens + y if self.skip_connection else y


class LearnableScale(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.ones(size))

    def forward(self, f: Tensor) -> Tensor:
        return f * self.s


class Learned(Bottleneck):
    """A scale of its own layer, one number or one per channel."""

    def __init__(self, size: int, skip: bool) -> None:
        super().__init__(nn.ReLU)
        self.scaling = LearnableScale(size)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.scaling(self.branch(x))
        return x + y if self.skip else y


class LearnedHere(Bottleneck):
    """A scale that is a parameter of the adapter, [], [1], [D] or [1, 1, D]."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * self.branch(x)


class Reassigned(nn.Module):
    """down_proj and up_proj, whose Parameters are replaced after they were made."""

    def __init__(self) -> None:
        super().__init__()
        self.down_proj = nn.Linear(D, H)
        self.up_proj = nn.Linear(H, D)
        for linear in (self.down_proj, self.up_proj):
            linear.weight = nn.Parameter(torch.zeros_like(linear.weight))
            linear.bias = nn.Parameter(torch.zeros_like(linear.bias))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up_proj(F.gelu(self.down_proj(x)))


class AdaptFormer(nn.Module):
    """ReLU, dropout by a function, a scale, the residual from outside or x; a LayerNorm before, after, or none."""

    def __init__(self, norm: str = "none", scale: float | str = 0.1, p: float = 0.1) -> None:
        super().__init__()
        self.norm = norm
        if norm != "none":
            self.ln = nn.LayerNorm(D)
        self.scale = nn.Parameter(torch.ones(1)) if scale == "learned" else scale
        self.down_proj = nn.Linear(D, H)
        self.non_linear = nn.ReLU()
        self.up_proj = nn.Linear(H, D)
        self.p = p

    def forward(self, x: Tensor, add_residual: bool = True, residual: Tensor | None = None) -> Tensor:
        residual = x if residual is None else residual
        if self.norm == "in":
            x = self.ln(x)
        hidden = F.dropout(self.non_linear(self.down_proj(x)), self.p, self.training)
        y = self.up_proj(hidden) * self.scale
        if self.norm == "out":
            y = self.ln(y)
        return y + residual if add_residual else y


class AsSequential(nn.Module):
    """The layers in a container, the sum around it, and the scale a number in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(D, H), nn.SiLU(), nn.Identity(), nn.Linear(H, D, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.25 * self.net(x)


class Derived(Bottleneck):
    """The scale is worked out from two attributes."""

    def __init__(self) -> None:
        super().__init__(nn.Tanh)
        self.alpha, self.rank = 16.0, 6

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * (self.alpha / self.rank)


class ScaleOfClass(Bottleneck):
    """The scale is an attribute of the class."""

    scale = 0.6

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.branch(x)


class TensorScale(Bottleneck):
    """The scale is a tensor, and neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.tensor(0.6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor * self.branch(x)


class TakesResidual(Bottleneck):
    """The sum is with another tensor, which has to be given."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return residual + self.branch(x)


class ThreeResults(Bottleneck):
    """Returns the parts of the sum too."""

    def __init__(self) -> None:
        super().__init__()
        self.scaling = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.act(self.D_fc1(x))
        up = self.D_fc2(hidden) * self.scaling
        return up + residual, hidden, up


# name, how it is made, the arguments after x that a call needs, and the formula of the report
TAKEN: dict[str, tuple[Callable[[], nn.Module], int, str]] = {
    "aim_vit": (partial(Original, D), 0, "f(x) + x, gelu"),
    "aim_vit_no_skip": (partial(Original, D, 0.5, skip_connect=False), 0, "f(x), gelu"),
    "aim_swin_spatial": (Spatial, 0, "f(x) + x, gelu"),
    "aim_swin_temporal": (Temporal, 0, "f(x), gelu"),
    "aim_swin_linear": (Linear2, 0, "f(x), identity"),
    "act_unused": (ActUnused, 0, "f(x) + x, identity"),
    "scaled_linear": (Scaled, 0, "scale * f(x) + x, identity"),
    "scale_of_1": (partial(Scaled, 1.0), 0, "scale * f(x) + x, identity"),
    "scale_of_0": (partial(Scaled, 0.0), 0, "scale * f(x) + x, identity"),
    "whole_scale": (partial(Scaled, 2), 0, "scale * f(x) + x, identity"),
    "dropout": (partial(Scaled, 0.5, nn.GELU, 0.1), 0, "scale * f(x) + x, gelu"),
    "scaled_sum": (partial(ScaledSum, 0.3), 0, "scale * f(x) + scale * x, gelu"),
    "scaled_sum_learned": (partial(ScaledSum, torch.ones(D)), 0, "scale * f(x) + scale * x, gelu"),
    "scaled_sum_no_skip": (partial(ScaledSum, 0.3, skip=False), 0, "scale * f(x), gelu"),
    "absolute_width": (partial(Absolute, 5), 0, "f(x) + x, relu"),
    "as_wide": (partial(Absolute, D), 0, "f(x) + x, relu"),
    "renamed": (Renamed, 0, "f(x) + x, quick_gelu"),
    "learned_scale": (partial(Learned, 1, True), 0, "scaling.s * f(x) + x, relu"),
    "channel_scale": (partial(Learned, D, False), 0, "scaling.s * f(x), relu"),
    "scale_without_dims": (LearnedHere, 0, "gamma * f(x), gelu"),
    "scale_11d": (
        partial(LearnedHere, 1, 1, D),
        0,
        "gamma * f(x), gelu; eager unless x has 3, 4 or 5 dimensions",
    ),
    "reassigned": (Reassigned, 0, "f(x) + x, gelu"),
    "adaptformer": (AdaptFormer, 0, "scale * f(x) + x, relu; eager in training mode"),
    "adaptformer_no_dropout": (partial(AdaptFormer, scale="learned", p=0.0), 0, "scale * f(x) + x, relu"),
    "as_sequential": (AsSequential, 0, "0.25 * f(x) + x, silu"),
    "sequential": (lambda: nn.Sequential(nn.Linear(D, H), nn.Tanh(), nn.Linear(H, D)), 0, "f(x), tanh"),
    "derived_scale": (Derived, 0, "2.66667 * f(x) + x, tanh"),
    "scale_of_class": (ScaleOfClass, 0, "scale * f(x), gelu"),
    "tensor_scale": (TensorScale, 0, "factor * f(x) + x, gelu"),
    "takes_residual": (TakesResidual, 1, "f(x) + residual, gelu"),
    "three_results": (ThreeResults, 1, "scaling * f(x) + residual, gelu"),
}
