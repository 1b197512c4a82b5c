"""Patched models under torch.compile and DistributedDataParallel."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import aim_fast
from original import assert_same_training_step
from patched import drawn
from variants import TAKEN, D

pytestmark = pytest.mark.usefixtures("seed")


@pytest.mark.parametrize("name", ["aim_vit", "renamed", "channel_scale", "scaled_linear", "three_results"])
def test_compiled_without_breaks(name: str) -> None:
    """One graph, with the operator in it, and for more rows the same graph."""
    make, inputs, _ = TAKEN[name]
    original = drawn(make())
    patched = copy.deepcopy(original)
    aim_fast.patch(patched)
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(patched, backend=keep, fullgraph=True, dynamic=True)
    for rows in (5, 9, 13):
        arguments = torch.randn(1 + inputs, rows, D).unbind()
        results = compiled(*(t.clone().requires_grad_() for t in arguments))
        torch.testing.assert_close(results, original(*arguments))
        sum(y.sum() for y in (results if inputs else (results,))).backward()
    assert len(graphs) == 1
    assert "adapter" in graphs[0].print_readable(print_output=False)
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["ours", "aim_vit"])
def test_exported_with_the_operator(name: str) -> None:
    module: Any = aim_fast.Adapter(D) if name == "ours" else drawn(TAKEN[name][0]())
    aim_fast.patch(module)
    x = torch.randn(5, D)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2)},), strict=False)
    assert "aim_fast.adapter.default" in {str(node.target) for node in program.graph.nodes}
    for rows in (x, x[:3]):
        torch.testing.assert_close(program.module()(rows), module(rows))


@pytest.fixture
def group() -> Iterator[None]:
    """A group of this process alone."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_distributed_data_parallel(calls: list[dict]) -> None:
    original = nn.Sequential(*(drawn(TAKEN[name][0]()) for name in ("aim_vit", "learned_scale", "as_sequential")))
    ours = copy.deepcopy(original)
    assert len(aim_fast.patch(ours).taken) == 3
    calls.clear()

    class Distributed(nn.Module):
        """Parameters under their own names."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = ours
            self.outer: Any
            self.__dict__["outer"] = DistributedDataParallel(ours)

        def forward(self, x: Tensor) -> Tensor:
            return self.outer(x)

        def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
            return self.inner.named_parameters(*args, **kwargs)

    assert_same_training_step(Distributed(), original, torch.randn(5, D))
    assert len(calls) == 3
