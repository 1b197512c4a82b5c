"""What owners do to the children of an adapter of width 48 that makes them more than nn.Linear or their activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations


def _forward_hook(adapter: Any) -> None:
    adapter.D_fc1.register_forward_hook(lambda linear, args, output: output + 1)


def _pre_hook(adapter: Any) -> None:
    adapter.D_fc2.register_forward_pre_hook(lambda linear, args: (2 * args[0],))


def _backward_hook(adapter: Any) -> None:
    adapter.D_fc1.register_full_backward_hook(lambda linear, into, out: (3 * into[0],))


def _backward_pre_hook(adapter: Any) -> None:
    adapter.D_fc2.register_full_backward_pre_hook(lambda linear, out: (3 * out[0],))


def _hook_on_activation(adapter: Any) -> None:
    adapter.act.register_forward_hook(lambda act, args, output: output.clamp(max=0.1))


def _weight_norm(adapter: Any) -> None:
    parametrizations.weight_norm(adapter.D_fc1)
    with torch.no_grad():
        adapter.D_fc1.parametrizations.weight.original0.mul_(2)


def _own_forward(adapter: Any) -> None:
    adapter.D_fc2.forward = lambda z: z.repeat(1, 4)


def _own_activation(adapter: Any) -> None:
    adapter.act.forward = torch.sin


class Lora(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.mean(-1, keepdim=True)


def _lora(adapter: Any) -> None:
    lora = Lora(48, 12)
    lora.load_state_dict(adapter.D_fc1.state_dict())
    adapter.D_fc1 = lora


CHANGES = [
    *(_forward_hook, _pre_hook, _backward_hook, _backward_pre_hook, _hook_on_activation),
    *(_weight_norm, _own_forward, _own_activation, _lora),
]
