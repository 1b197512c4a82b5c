"""torch.export, AOTInductor and ONNX: the call is one differentiable node, and each runtime gets what it can take."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import aim_fast
from judge import assert_judged

pytestmark = pytest.mark.usefixtures("cpu_library", "seed")

BF16 = torch.bfloat16
ROWS = (13, 7, 200)
EXPORTED = torch.ops.aim_fast.adapter.default


class Block(nn.Module):
    """Adapters of every kind in a row, with a residual, a drop-path factor and a trained gate."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(24)
        self.first = aim_fast.Adapter(24)
        self.second = aim_fast.T_Adapter(24, act_layer=nn.SiLU)
        self.gate = nn.Parameter(torch.full((24,), 0.7))
        self.register_buffer("factor", torch.tensor([1.0, 0.5]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x, scale=0.5)
        return self.second(self.norm(x), residual=x, scale=self.gate, row_scale=self.factor)


def batch(rows: int) -> Tensor:
    return torch.randn(rows, 2, 24)


def exported(model: nn.Module, **options: Any) -> ExportedProgram:
    """The program of a model, for any number of rows."""
    return torch.export.export(model, (batch(ROWS[0]),), dynamic_shapes=({0: Dim.DYNAMIC},), **options)


def calls(program: ExportedProgram, op: torch._ops.OpOverload) -> list[torch.fx.Node]:
    return [node for node in program.graph.nodes if node.target is op]


def training_step(function: Callable[[Tensor], Tensor], parameters: Sequence[Tensor], x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *parameters])]


@pytest.mark.parametrize("strict", [False, True], ids=["nonstrict", "strict"])
def test_program(tmp_path: Path, strict: bool) -> None:
    """One node an adapter, any number of rows, saved and loaded; the backend is chosen where it runs."""
    model = Block()
    torch.export.save(exported(model, strict=strict), tmp_path / "block.pt2")
    program = torch.export.load(tmp_path / "block.pt2")
    assert len(calls(program, EXPORTED)) == 2
    run = program.module()
    for rows in ROWS:
        x = batch(rows)
        for backend in ("cpu", "eager"):
            with aim_fast.use_backend(backend):
                assert torch.equal(run(x), model(x)), (rows, backend)


def test_program_trains() -> None:
    """A loaded program has the gradients of the module that it was made of."""
    model = Block()
    run = exported(model).module()
    x = batch(7)
    named = dict(run.named_parameters())
    got = training_step(run, [named[name] for name, _ in model.named_parameters()], x)
    for ours, theirs in zip(got, training_step(model, list(model.parameters()), x), strict=True):
        assert torch.equal(ours, theirs)


def test_program_in_a_transform() -> None:
    model = Block()
    run = exported(model).module()
    x = batch(7)
    got, expected = (torch.func.jvp(f, (x,), (x.cos(),))[1] for f in (run, model))
    torch.testing.assert_close(got, expected)


def test_program_keeps_the_autocast_of_its_export() -> None:
    """The dtype of the products is part of the program, whatever autocast is on when it runs."""
    model = Block()
    x = batch(7)
    with torch.autocast("cpu", BF16):
        program = exported(model)
        expected = model(x)
    assert [node.args[11] for node in calls(program, EXPORTED)] == [BF16, BF16]
    assert torch.equal(program.module()(x), expected)
    plain = exported(model).module()
    with torch.autocast("cpu", BF16):
        inside = plain(x)
    assert torch.equal(inside, model(x))


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad], ids=["with_grad", "no_grad"])
def test_inference_graph(context: Callable[[], Any]) -> None:
    """Decomposed for inference: the forward operator itself, without z."""
    with context():
        program = exported(Block()).run_decompositions()
    forwards = calls(program, torch.ops.aim_fast.adapter_forward.default)
    assert [node.args[-2:] for node in forwards] == 2 * [(False, False)]


def _assert_equal(run: Callable[[Tensor], Tensor], model: nn.Module) -> None:
    """run is model within the budget, for numbers of rows that it was not made with."""
    exact = copy.deepcopy(model).double()
    for rows in ROWS:
        x = batch(rows)
        with aim_fast.use_backend("eager"):
            eager, truth = model(x), exact(x.double())
        assert_judged({"y": run(x)}, {"y": eager}, {"y": truth})


def _events(function: Callable[[], object]) -> list[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return [event.name for event in profile.events() if event.name.startswith("aim_fast::")]


def test_aot_inductor(tmp_path: Path) -> None:
    """A compiled package calls the kernel through the dispatcher, for any number of rows."""
    model = Block().requires_grad_(False)
    package = torch._inductor.aoti_compile_and_package(exported(model), package_path=str(tmp_path / "block.pt2"))
    run = torch._inductor.aoti_load_package(package)
    x = batch(7)
    assert _events(lambda: run(x)) == ["aim_fast::adapter_forward"] * 2
    _assert_equal(run, model)


def _onnx(what: nn.Module | ExportedProgram, file: Path) -> Callable[[Tensor], Tensor]:
    """What onnxruntime makes of it, loaded from a file."""
    import onnxruntime

    example = () if isinstance(what, ExportedProgram) else (batch(ROWS[0]),)
    shapes = ({0: Dim.DYNAMIC},)
    torch.onnx.export(what, example, file, dynamo=True, dynamic_shapes=shapes, verbose=False, external_data=False)
    session = onnxruntime.InferenceSession(file)
    (name,) = (argument.name for argument in session.get_inputs())
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


class Chain(nn.Module):
    """Every activation, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.adapter = aim_fast.Adapter(24)

    def forward(self, x: Tensor) -> Tensor:
        down, up = self.adapter.D_fc1, self.adapter.D_fc2
        for name in aim_fast.ACTIVATIONS:
            x = aim_fast.adapter(x, down.weight, down.bias, up.weight, up.bias, activation=name, skip=True)
        return x


@pytest.mark.parametrize(
    ("make", "source"), [(Chain, lambda model: model), (Block, exported)], ids=["module", "program"]
)
def test_onnx(tmp_path: Path, make: Callable[[], nn.Module], source: Callable[[nn.Module], Any]) -> None:
    """The composition by itself, from a module and from a program that holds the operator."""
    model = make().requires_grad_(False)
    run = _onnx(source(model), tmp_path / "model.onnx")
    _assert_equal(run, model)
    with aim_fast.use_backend("cpu"):
        model(batch(7))  # the kernel is back
