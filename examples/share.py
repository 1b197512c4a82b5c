"""What the adapters of a model cost, measured alone on the inputs that the model gives them."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class Saved:
    """Counts what autograd saves within `hooks`: each storage once, the parameters left out."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.storages: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is counted twice
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.parameters:
            self.storages[storage.data_ptr()] = storage
        return tensor

    def mib(self) -> float:
        return sum(storage.nbytes() for storage in self.storages.values()) / 2**20


@dataclass
class Call:
    """One adapter's call within a forward of its model, to be made again alone."""

    adapter: nn.Module
    inputs: dict[str, Any]

    def forward(self) -> Tensor:
        return self.adapter(**self.inputs)

    def forward_and_backward(self, dy: Tensor) -> None:
        wanted = [t for t in (*self.adapter.parameters(), self.inputs["x"], self.inputs["residual"]) if t.requires_grad]
        torch.autograd.grad(self.forward(), wanted, dy)


def record(model: nn.Module, adapters: list[nn.Module], clips: Tensor) -> tuple[list[Call], float]:
    """The adapters' calls in one forward of the model, and the MiB that the whole forward saves for the backward."""
    calls: list[Call] = []

    def keep(adapter: nn.Module, args: tuple[Tensor], kwargs: dict[str, Any]) -> None:
        inputs = {"x": args[0], **kwargs}
        for name in ("x", "residual"):
            inputs[name] = inputs[name].detach().requires_grad_()
        calls.append(Call(adapter, inputs))

    handles = [adapter.register_forward_pre_hook(keep, with_kwargs=True) for adapter in adapters]
    saved = Saved(model)
    with saved.hooks:
        model(clips)
    for handle in handles:
        handle.remove()
    return calls, saved.mib()


def saved_mib(calls: list[Call]) -> float:
    """MiB that the calls save for the backward."""
    saved = [Saved(call.adapter) for call in calls]
    for one, call in zip(saved, calls, strict=True):
        with one.hooks:
            call.forward()
    return sum(one.mib() for one in saved)


def seconds(rivals: dict[str, list[Call]], rounds: int = 7) -> dict[str, float]:
    """Median seconds for forward and backward of all calls of each rival, turn by turn in one process."""
    times: dict[str, list[float]] = {name: [] for name in rivals}
    dys = [torch.ones_like(call.forward()) for call in next(iter(rivals.values()))]
    for _ in range(rounds):
        for name, calls in rivals.items():
            start = time.perf_counter()
            for call, dy in zip(calls, dys, strict=True):
                call.forward_and_backward(dy)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(some) for name, some in times.items()}
