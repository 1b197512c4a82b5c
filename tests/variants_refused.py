"""Adapters that `patch` has to refuse, some of public code bases, each of width D = 24.

Names and children are no help: several have the very parts of AIM's adapter, and differ in what forward does with them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from variants import AdaptFormer, Bottleneck, D, H, Temporal


class ActTwice(Bottleneck):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.branch(x))


class Discards(Bottleneck):
    def forward(self, x: Tensor) -> Tensor:
        self.branch(x)
        return x


class DiscardsAll(Bottleneck):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class With(Bottleneck):
    """A layer more, between the two Linears."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.more = make()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.D_fc2(self.act(self.between(self.D_fc1(x))))

    def between(self, h: Tensor) -> Tensor:
        return self.more(h)


class WithConv1d(With):
    def between(self, h: Tensor) -> Tensor:
        return self.more(h.transpose(1, 2)).transpose(1, 2)


class WithConv2d(With):
    def between(self, h: Tensor) -> Tensor:
        return self.more(h.unsqueeze(1)).squeeze(1)


class WithAttention(With):
    def between(self, h: Tensor) -> Tensor:
        return self.more(h, h, h, need_weights=False)[0]


class DropPath(nn.Module):
    """The identity in evaluation mode."""

    def forward(self, h: Tensor) -> Tensor:
        return h * (torch.rand(len(h)) > 0.5).view(-1, *[1] * (h.dim() - 1)) / 0.5 if self.training else h


class SecondInput(Bottleneck):
    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        return x + self.branch(x + prompt)


class OptionalGate(Bottleneck):
    """Takes x alone; with a gate, more than the operator does."""

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        f = self.branch(x)
        return x + (f if gate is None else gate * f)


class InPlace(Bottleneck):
    def forward(self, x: Tensor) -> Tensor:
        x += self.branch(x)
        return x


class Counts(Bottleneck):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.branch(x)


class RunningMean(Bottleneck):
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(D))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean(tuple(range(x.dim() - 1))))
        return x + self.branch(x)


class Detached(Bottleneck):
    """The right results, and no gradient through the branch."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x.detach())


class Gated(Bottleneck):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(D, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sigmoid(self.gate(x)) * self.branch(x)


class ScaleBeforeBias(Bottleneck):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5 * F.linear(self.act(self.D_fc1(x)), self.D_fc2.weight) + self.D_fc2.bias


class OtherActivation(Bottleneck):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.D_fc2(F.mish(self.D_fc1(x)))


class SquashedScale(Bottleneck):
    """The scale is a function of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.gate) * self.branch(x)


class AcrossTokens(Bottleneck):
    """Mixes rows: what is left of each row's mean."""

    def forward(self, x: Tensor) -> Tensor:
        f = self.branch(x)
        return x + f - f.mean(0, keepdim=True)


class Mlp(nn.Module):
    """A transformer's own MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(D, 4 * D)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * D, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class WithoutAutocast(Bottleneck):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return x + self.branch(x.to(self.D_fc1.weight.dtype))


class ReturnsDict(Bottleneck):
    def forward(self, x: Tensor) -> Any:
        return {"y": self.branch(x)}


class Casts(Bottleneck):
    def forward(self, x: Tensor) -> Tensor:
        return (x + self.branch(x)).float()


# name, how it is made, and words of the reason
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "act_twice": (ActTwice, "applies the activation a second time"),
    "discards": (Discards, "discards the branch"),
    "discards_all": (DiscardsAll, "discards the branch"),
    "conv1d": (partial(WithConv1d, lambda: nn.Conv1d(H, H, 3, padding=1)), "holds a Conv1d (more)"),
    "conv2d": (partial(WithConv2d, lambda: nn.Conv2d(1, 1, 3, padding=1)), "holds a Conv2d (more)"),
    "layer_norm": (partial(With, lambda: nn.LayerNorm(H)), "holds a LayerNorm (more)"),
    "layer_norm_without_weights": (
        partial(With, lambda: nn.LayerNorm(H, elementwise_affine=False)),
        "holds a LayerNorm",
    ),
    "attention": (partial(WithAttention, lambda: nn.MultiheadAttention(H, 2)), "holds a MultiheadAttention (more)"),
    "drop_path": (partial(With, DropPath), "holds a DropPath (more)"),
    "third_linear": (partial(With, lambda: nn.Linear(H, H)), "holds a third Linear (more)"),
    "adaptformer_norm_in": (partial(AdaptFormer, "in"), "holds a LayerNorm (ln)"),
    "adaptformer_norm_out": (partial(AdaptFormer, "out"), "holds a LayerNorm (ln)"),
    "second_input": (SecondInput, "takes a second input (prompt)"),
    "in_place": (InPlace, "writes into its input"),
    "counts": (Counts, "changes the module's own state"),
    "running_mean": (RunningMean, "changes the module's own state"),
    "detached": (Detached, "gradient of x differs"),
    "gated": (Gated, "holds a third Linear (gate)"),
    "scale_before_bias": (ScaleBeforeBias, "computes something else"),
    "other_activation": (OtherActivation, "computes something else"),
    "own_activation": (partial(Temporal, nn.Mish), "holds a Mish (act)"),
    "squashed_scale": (SquashedScale, "computes something else"),
    "across_tokens": (AcrossTokens, "computes something else"),
    "mlp": (Mlp, "widens 24 to 96: no bottleneck"),
    "without_autocast": (WithoutAutocast, "turns autocast off"),
    "returns_dict": (ReturnsDict, "returns a dict"),
    "casts": (Casts, "returns torch.float32 for an x of torch.float64"),
}
