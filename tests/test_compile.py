"""torch.compile: whole graphs, one for every number of rows, with the same results as outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

import aim_fast
from aim_fast.module import activation_name
from judge import Tensors, assert_judged, evaluate, make_inputs

pytestmark = pytest.mark.usefixtures("cpu_library")

BF16 = torch.bfloat16
# No number of rows is another's double, so that nothing hides in a factor; none is 0 or 1, which are always their own.
ROWS = (13, 7, 200, 2)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def counted(function: Callable, **options: Any) -> tuple[Callable, CompileCounterWithBackend]:
    """The function compiled without graph breaks, and the counter of its graphs."""
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(function, fullgraph=True, backend=counter, **options), counter


def kernels(counter: CompileCounterWithBackend) -> list[str]:
    """What each adapter became in the last graph: the fused operator, or the composition with its two products."""
    kinds = {torch.ops.aim_fast.adapter_forward.default: "fused", nn.functional.linear: "product"}
    graphs = [module for module in counter.graphs[-1].modules() if isinstance(module, torch.fx.GraphModule)]
    return [kinds[node.target] for module in graphs for node in module.graph.nodes if node.target in kinds]


def inputs(rows: int, **extra: Any) -> Tensors:
    tensors = make_inputs((rows, 24), 8)
    generator = torch.Generator().manual_seed(1)
    draw = {
        "residual": lambda: torch.randn(rows, 24, generator=generator),
        "scale": lambda: torch.randn(24, generator=generator),
        "row_scale": lambda: torch.rand(rows, generator=generator),
    }
    return tensors | {name: draw[name]() for name in extra}


# Arguments beside x and the weights, options, and the dtype of autocast.
CALLS: dict[str, tuple[tuple[str, ...], dict[str, Any], torch.dtype | None]] = {
    "bare": ((), {}, None),
    "everything": (("residual", "scale", "row_scale"), {"skip": True, "activation": "quick_gelu"}, None),
    "recompute": ((), {"skip": True, "scale": 0.5, "recompute": True}, None),
    "autocast": (("residual",), {"skip": True}, BF16),
}


def autocast(dtype: torch.dtype | None) -> AbstractContextManager[object]:
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype)


@pytest.mark.parametrize(("extra", "options", "half"), CALLS.values(), ids=CALLS)
def test_one_graph_for_every_number_of_rows(fused: None, extra, options, half) -> None:
    """Forward and backward; the second size makes the rows a symbol, and no further one compiles again."""
    compiled, counter = counted(aim_fast.adapter)
    for i, rows in enumerate(ROWS):
        tensors = inputs(rows, **dict.fromkeys(extra))
        dy = torch.randn(rows, 24)
        with autocast(half):
            plain, traced = (evaluate(f, tensors, dy, **options) for f in (aim_fast.adapter, compiled))
        for name, value in plain.items():
            assert torch.equal(value, traced[name]), name
        assert counter.frame_count == min(i + 1, 2)
    assert kernels(counter) == ["fused"]


def test_declared_dynamic(fused: None) -> None:
    """dynamic=True: nothing compiles after the first call, for any leading shape of as many dimensions."""
    compiled, counter = counted(aim_fast.adapter, dynamic=True)
    graphs = set()
    for leading in ((4, 6), (3, 5), (7, 2)):
        tensors = make_inputs((*leading, 24), 8)
        assert torch.equal(compiled(**tensors), aim_fast.adapter(**tensors))
        graphs.add(counter.frame_count)
    assert len(graphs) == 1


def test_scale_that_changes(fused: None) -> None:
    """A number is a constant of the graph, as PyTorch has it for operators; a tensor takes any value."""
    tensors = make_inputs((13, 24), 8)
    compiled, counter = counted(aim_fast.adapter)
    for scale in (0.1, 0.2, 0.3):
        value = torch.tensor([scale])
        assert torch.equal(compiled(**tensors, scale=value), aim_fast.adapter(**tensors, scale=value))
    assert counter.frame_count == 1


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "permuted": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "gapped": lambda t: nn.functional.pad(t, (0, 5))[..., :-5],
    "reversed": lambda t: t.transpose(0, 2).contiguous().transpose(0, 2),
    "many_dimensions": lambda t: t.reshape(2, 2, 1, 3, 1, 2, 1, 1, 1, 24),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(fused: None, layout: str) -> None:
    """Strided rows, rows that have to be copied, more dimensions than the kernels walk: the same bits and strides."""
    tensors = make_inputs((4, 6, 24), 8)
    tensors["residual"] = LAYOUTS[layout](torch.randn(4, 6, 24))
    tensors["x"] = LAYOUTS[layout](tensors["x"])
    dy = torch.randn(tensors["x"].shape)
    compiled, counter = counted(aim_fast.adapter)
    plain, traced = (evaluate(f, tensors, dy, skip=True) for f in (aim_fast.adapter, compiled))
    for name, value in plain.items():
        assert torch.equal(value, traced[name]), name
        assert value.stride() == traced[name].stride(), name
    assert counter.frame_count == 1


def foreign() -> nn.Module:
    """CLIP's activation as its code defines it, of a class that nobody has met yet."""

    class QuickGELU(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(1.702 * x)

    return QuickGELU()


class Block(nn.Module):
    """Adapters as a transformer block holds them: in a row, with a residual and a trained gate."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(24)
        self.first = aim_fast.Adapter(24, act_layer=foreign)
        self.second = aim_fast.T_Adapter(24)
        self.gate = nn.Parameter(torch.full((24,), 0.7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(self.norm(x), residual=x, scale=self.gate)


def _gradients(function: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    names, parameters = zip(*model.named_parameters(), strict=True)
    dx, *grads = torch.autograd.grad(y.float().square().sum(), [x, *parameters])
    return {"y": y.detach(), "dx": dx, **dict(zip(names, grads, strict=True))}


@pytest.mark.parametrize("half", [None, BF16], ids=["fp32", "autocast"])
def test_modules(fused: None, half: torch.dtype | None, seed: None) -> None:
    """Two adapters fused in one graph, an activation class of another code base among them, for every size."""
    model = Block()
    compiled, counter = counted(model)
    for rows in ROWS:
        x = torch.randn(rows, 24)
        with autocast(half):
            traced, plain = (_gradients(f, model, x) for f in (compiled, model))
        for name, value in plain.items():
            assert torch.equal(value, traced[name]), name
    assert counter.frame_count == 2
    assert kernels(counter) == ["fused", "fused"]


def test_autocast_inside(fused: None, seed: None) -> None:
    """Autocast entered in the compiled function itself, and a backward under yet another one."""
    model = Block()

    def step(x: Tensor) -> Tensor:
        with torch.autocast("cpu", BF16):
            return model(x)

    compiled, counter = counted(step)
    x = torch.randn(13, 24)
    plain, traced = (_gradients(f, model, x) for f in (step, compiled))
    for name, value in plain.items():
        assert torch.equal(value, traced[name]), name
    with torch.autocast("cpu", torch.float16):
        again = _gradients(compiled, model, x)
    for name, value in plain.items():
        assert torch.equal(value, again[name]), name
    assert kernels(counter) == ["fused", "fused"]


def test_unknown_class_while_tracing(seed: None) -> None:
    """An activation put in later, first seen by the compiler: traced as written, since nothing can be tried there."""
    model = aim_fast.Adapter(24)
    model.act = foreign()
    compiled, counter = counted(model)
    x = torch.randn(13, 24)
    traced = compiled(x)
    assert kernels(counter) == ["product", "product"]
    assert torch.equal(traced, x + model.D_fc2(model.act(model.D_fc1(x))))
    assert activation_name(model.act) == "quick_gelu"


def test_hooked_child_runs_as_written(seed: None) -> None:
    """A hook on a child is traced too, and the adapter is not fused around it."""
    model = aim_fast.Adapter(24)
    model.D_fc1.register_forward_hook(lambda linear, args, z: 2 * z)
    compiled, counter = counted(model)
    x = torch.randn(13, 24)
    assert torch.equal(compiled(x), model(x))
    assert kernels(counter) == ["product", "product"]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference"])
def test_without_a_graph(fused: None, context: Callable[[], Any], seed: None) -> None:
    """Inference calls the forward operator alone, and does not keep z."""
    model = aim_fast.Adapter(24)
    compiled, counter = counted(model)
    with context():
        for rows in ROWS:
            x = torch.randn(rows, 24)
            assert torch.equal(compiled(x), model(x))
    assert counter.frame_count == 2
    (call,) = [n for n in counter.graphs[-1].graph.nodes if n.target is torch.ops.aim_fast.adapter_forward.default]
    assert call.args[-2:] == (False, False)


def test_the_forced_backend_is_part_of_the_graph(seed: None) -> None:
    """use_backend around a compiled call: each choice has its own graph, and is found again without compiling."""
    model = aim_fast.Adapter(24)
    compiled, counter = counted(model)
    x = torch.randn(13, 24, requires_grad=True)
    expected = {"auto": ["fused"], "eager": ["product", "product"], "cpu": ["fused"]}
    for name, kinds in expected.items():
        with aim_fast.use_backend(name):
            compiled(x)
        assert kernels(counter) == kinds, name
    assert counter.frame_count == 3
    for name in expected:
        with aim_fast.use_backend(name):
            assert torch.equal(compiled(x), model(x))
    assert counter.frame_count == 3


def test_errors_name_their_cause_while_tracing(fused: None) -> None:
    """A forced kernel refuses float64, and a wrong shape is named, in the same words as outside."""
    compiled, _ = counted(aim_fast.adapter)
    with pytest.raises(Exception, match="takes float32, bfloat16 and float16 only"):
        compiled(**make_inputs((3, 24), 8, torch.float64))
    with pytest.raises(Exception, match=r"adapter: b1 is \[8\]; expected b1 of shape \[H\]"):
        compiled(**make_inputs((3, 24), 8) | {"w1": torch.zeros(6, 24), "w2": torch.zeros(24, 6)})


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """One process that is a mesh."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_tensor_parallel(fused: None, seed: None, mesh: DeviceMesh) -> None:
    """An adapter whose weights are DTensors, and the sums over the ranks, in one graph."""
    from aim_fast.parallel import shard_adapters

    model = shard_adapters(Block(), mesh)
    compiled, counter = counted(model)
    for rows in ROWS[:3]:
        x = torch.randn(rows, 24)
        plain, traced = (_gradients(f, model, x) for f in (model, compiled))
        for name, value in plain.items():
            assert torch.equal(whole(value), whole(traced[name])), name
    assert counter.frame_count == 2


def whole(t: Tensor) -> Tensor:
    return t.full_tensor() if hasattr(t, "full_tensor") else t


@pytest.mark.parametrize("half", [None, BF16], ids=["fp32", "autocast"])
def test_inductor(fused: None, half: torch.dtype | None, seed: None) -> None:
    """The default backend, code generated around the operator: modules, a residual stream, every parameter."""
    model = Block()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    x = torch.randn(13, 24)
    with autocast(half):
        traced = _gradients(compiled, model, x)
        with aim_fast.use_backend("eager"):
            eager = _gradients(model, model, x)
    with aim_fast.use_backend("eager"):
        truth = _gradients(model.double(), model, x.double())
    assert_judged(traced, eager, truth)
