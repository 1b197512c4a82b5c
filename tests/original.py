"""AIM's adapter class as its code has it, and our modules beside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import aim_fast


class Original(nn.Module):
    """An adapter as AIM's code has it, in other words: the same names, and separate calls."""

    def __init__(
        self,
        D_features: int,
        mlp_ratio: float = 0.25,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        skip_connect: bool = True,
    ) -> None:
        super().__init__()
        self.skip_connect = skip_connect
        hidden = int(D_features * mlp_ratio)
        self.act = act_layer()
        self.D_fc1 = nn.Linear(D_features, hidden)
        self.D_fc2 = nn.Linear(hidden, D_features)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.D_fc2(self.act(self.D_fc1(x)))
        return x + branch if self.skip_connect else branch


# Ours beside the original that it stands for.
PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "Adapter": (aim_fast.Adapter, Original),
    "Adapter_no_skip": (partial(aim_fast.Adapter, skip_connect=False), partial(Original, skip_connect=False)),
    "SAdapter2": (aim_fast.SAdapter2, Original),
    "T_Adapter": (aim_fast.T_Adapter, partial(Original, skip_connect=False)),
}


def pair(name: str = "Adapter", width: int = 48, **options: Any) -> tuple[Any, Any]:
    """Our module and the original with the same weights."""
    ours, original = (make(width, **options) for make in PAIRS[name])
    original.load_state_dict(ours.state_dict(), strict=True)
    return ours, original


def assert_same_training_step(ours: nn.Module, original: nn.Module, x: Tensor) -> None:
    results = []
    for adapter in (ours, original):
        adapter.zero_grad()
        leaf = x.clone().requires_grad_()
        y = adapter(leaf)
        y.square().mean().backward()
        results.append({"y": y.detach(), "x": leaf.grad} | {n: p.grad for n, p in adapter.named_parameters()})
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        torch.testing.assert_close(value, results[1][key], msg=f"{key} differs from the original's")
