"""What each of several processes runs: `python tests/processes.py FOLDER` leaves the results of two and of four there.

One import of torch serves all: the processes are forked before it has computed anything.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import aim_fast
from aim_fast import parallel
from aim_fast.testing import make_inputs

WORLDS = (2, 4)
WIDTH, SAMPLES = 16, 8
BF16 = torch.bfloat16
Results = dict[str, Any]  # tensors, or the texts of errors


class Net(nn.Module):
    """A frozen layer, and adapters with all that a block gives them: a residual and a trained gate."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.checkpointed = checkpointed
        self.backbone = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.inner = aim_fast.Adapter(WIDTH, 0.5)
        self.norm = nn.LayerNorm(WIDTH)
        self.tail = aim_fast.T_Adapter(WIDTH, 0.5)
        self.gate = nn.Parameter(torch.full((WIDTH,), 0.7))

    def _block(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        return self.tail(self.norm(x), residual=x, scale=self.gate)

    def forward(self, x: Tensor) -> Tensor:
        x = self.backbone(x)
        return checkpoint(self._block, x, use_reentrant=False) if self.checkpointed else self._block(x)


def net(**options: Any) -> Net:
    torch.manual_seed(0)
    return Net(**options)


def data() -> tuple[Tensor, Tensor]:
    """x and the target of a whole batch."""
    x, target = torch.randn(2, SAMPLES, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    return x, target


def share() -> tuple[Tensor, Tensor]:
    """This process's samples of the batch."""
    each = SAMPLES // dist.get_world_size()
    x, target = (t[dist.get_rank() * each :][:each] for t in data())
    return x, target


def train(model: nn.Module, x: Tensor, target: Tensor) -> None:
    """Three steps. The loss is a mean, so that the mean of the gradients of equal shares is that of the batch."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.5, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x).to(target.dtype) - target).square().mean().backward()
        optimizer.step()


def whole(t: Tensor) -> Tensor:
    return t.full_tensor() if isinstance(t, DTensor) else t


def parameters(model: nn.Module) -> Results:
    """The whole parameters, each part of them brought together."""
    return {name.removeprefix("module."): whole(p.detach()).clone() for name, p in model.named_parameters()}


def trained(wrap: Callable[[Net], nn.Module], checkpointed: bool = False, shared: bool = True) -> Results:
    model = wrap(net(checkpointed=checkpointed))
    train(model, *(share() if shared else data()))
    return parameters(model)


def _fsdp(model: Net, mesh: DeviceMesh | None = None, half: bool = False) -> nn.Module:
    policy = MixedPrecisionPolicy(param_dtype=BF16, reduce_dtype=torch.float32) if half else MixedPrecisionPolicy()
    mesh = mesh or _mesh()
    for module in (model.inner, model.tail, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    return model


def _mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def _children(model: Net) -> nn.Module:
    """PyTorch's own styles on the children: they hook them, so that the adapters are not fused."""
    plan = {"D_fc1": ColwiseParallel(), "D_fc2": RowwiseParallel()}
    for adapter in (model.inner, model.tail):
        parallelize_module(adapter, _mesh(), plan)
    return model


def _two_dimensions() -> Results:
    """Tensor parallel over one half of the processes, FSDP2 over the other."""
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("data", "tensor"))
    model = _fsdp(parallel.shard_adapters(net(), mesh["tensor"]), mesh["data"])  # type: ignore[arg-type]
    each = SAMPLES // 2
    train(model, *(t[mesh.get_local_rank("data") * each :][:each] for t in data()))
    return parameters(model)


def arguments() -> Results:
    tensors: dict[str, Any] = make_inputs((8, 5, WIDTH), 8)
    generator = torch.Generator().manual_seed(1)
    tensors["residual"] = torch.randn(8, 5, WIDTH, generator=generator)
    tensors["scale"] = torch.randn(WIDTH, generator=generator)
    return tensors


def penalty(y: Tensor, x: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of a gradient penalty: every sum over the ranks is taken in the second backward too."""
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    return torch.autograd.grad(dx.square().sum() + y.sum(), leaves)


def operator(rule: str, rows: bool, twice: bool = False) -> Results:
    """`adapter()` on DTensors: y and every gradient, once and through a second backward."""
    mesh = _mesh()
    places = dict(parallel.RULES[rule]) | dict.fromkeys(("x", "residual"), Shard(0) if rows else Replicate())
    leaves: Results = {
        name: distribute_tensor(t, mesh, [places.get(name, Replicate())]).requires_grad_()
        for name, t in arguments().items()
    }
    y = aim_fast.adapter(**leaves, skip=True)
    assert isinstance(y, DTensor)
    assert y.placements == (places["x"],)
    values = list(leaves.values())
    grads = penalty(y, leaves["x"], values) if twice else torch.autograd.grad(y.square().sum(), values)
    return {"y": whole(y.detach())} | {f"d{n}": whole(g) for n, g in zip(leaves, grads, strict=True)}


def refusals() -> Results:
    """What `adapter()` and `shard_adapters` say to tensors that lie as no rule has them."""
    mesh = _mesh()
    t = arguments()
    cut: Results = {
        name: distribute_tensor(t[name], mesh, [p]) for name, p in parallel.RULES["tensor parallel"].items()
    }
    full: Results = {name: distribute_tensor(t[name], mesh, [p]) for name, p in parallel.RULES["replicated"].items()}
    placed = {place: distribute_tensor(t["x"], mesh, [Shard(place)]) for place in (0, 2)}
    attempts: dict[str, Callable[[], object]] = {
        "plain_weights": lambda: aim_fast.adapter(placed[0], *(t[name] for name in cut)),
        "only_residual": lambda: aim_fast.adapter(t["x"], *(t[name] for name in cut), residual=placed[0]),
        "only_scale": lambda: aim_fast.adapter(
            t["x"], *(t[name] for name in cut), scale=distribute_tensor(t["scale"], mesh, [Replicate()])
        ),
        "plain_bias": lambda: aim_fast.adapter(t["x"], **cut | {"b1": t["b1"]}),
        "bias_whole": lambda: aim_fast.adapter(t["x"], **cut | {"b1": full["b1"]}),
        "cut_otherwise": lambda: aim_fast.adapter(
            t["x"], **cut | {"w1": cut["w1"].redistribute(placements=[Shard(1)])}
        ),
        "rows_of_x": lambda: aim_fast.adapter(placed[0], **cut),
        "columns_of_x": lambda: aim_fast.adapter(placed[2], **full),
        "residual_plain": lambda: aim_fast.adapter(placed[0], **full, residual=t["residual"]),
        "residual_placed": lambda: aim_fast.adapter(t["x"], **full, residual=placed[0]),
        "scale_plain": lambda: aim_fast.adapter(placed[0], **full, scale=t["scale"].requires_grad_()),
        "row_scale": lambda: aim_fast.adapter(placed[0], **full, row_scale=torch.ones(8, 1)),
        "hidden_width": lambda: parallel.shard_adapters(aim_fast.Adapter(12, 0.25), mesh),
        "mesh": lambda: parallel.shard_adapters(net(), init_device_mesh("cpu", (1, dist.get_world_size()))),
    }
    said = {}
    for name, attempt in attempts.items():
        try:
            attempt()
            said[name] = "nothing"
        except ValueError as error:
            said[name] = str(error)
    return said


def _sharded(model: Net) -> nn.Module:
    return parallel.shard_adapters(model, _mesh())


SCENARIOS: dict[str, Callable[[], Results]] = {
    "ddp": partial(trained, DistributedDataParallel),
    "ddp_checkpointed": partial(trained, DistributedDataParallel, checkpointed=True),
    "fsdp": partial(trained, _fsdp),
    "fsdp_checkpointed": partial(trained, _fsdp, checkpointed=True),
    "fsdp_half": partial(trained, partial(_fsdp, half=True), checkpointed=True),
    "tensor_parallel": partial(trained, _sharded, shared=False),
    "tensor_parallel_checkpointed": partial(trained, _sharded, checkpointed=True, shared=False),
    "tensor_parallel_of_children": partial(trained, _children, shared=False),
    "two_dimensions": _two_dimensions,
    "operator_cut": partial(operator, "tensor parallel", False),
    "operator_whole": partial(operator, "replicated", False),
    "operator_rows": partial(operator, "replicated", True),
    "operator_cut_twice": partial(operator, "tensor parallel", False, twice=True),
    "operator_rows_twice": partial(operator, "replicated", True, twice=True),
    "refusals": refusals,
}


def _everywhere(results: Results) -> Results:
    """The results, which have to be the same on every process, to the bit; all are sent before any is refused."""
    differing = []
    for name, value in results.items():
        mine = value if isinstance(value, Tensor) else torch.tensor(list(str(value).encode()), dtype=torch.uint8)
        first = mine.clone()
        dist.broadcast(first, 0)
        if not torch.equal(first, mine):
            differing.append(name)
    if differing:
        raise AssertionError(f"process {dist.get_rank()} has not what the first one has: {', '.join(differing)}")
    return results


def work(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting_{world}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    results: dict[str, Results] = {}
    for name, scenario in SCENARIOS.items():
        try:
            results[name] = _everywhere(scenario())
        except Exception:
            results[name] = {"error": traceback.format_exc()}
    torch.save(results, folder / f"{world}_{rank}.pt")
    dist.destroy_process_group()


def main(folder: Path) -> None:
    for world in WORLDS:
        torch.multiprocessing.start_processes(work, (world, folder), world, start_method="fork")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
