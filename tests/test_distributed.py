"""Two and four gloo processes beside one: the same parameters after three steps, the same gradients, clear errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import aim_fast
import processes
from aim_fast.reference import composition
from judge import assert_judged, evaluate, exact
from processes import BF16, SCENARIOS, WORLDS, Results

pytestmark = pytest.mark.usefixtures("cpu_library")

MANY = pytest.mark.parametrize("world", WORLDS)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Results]]:
    """What the first process of each number of them found, by scenario."""
    folder = tmp_path_factory.mktemp("processes")
    done = subprocess.run([sys.executable, processes.__file__, folder], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    found = {}
    for world in WORLDS:
        every = [torch.load(folder / f"{world}_{rank}.pt") for rank in range(world)]
        for name in SCENARIOS:
            errors = [one[name]["error"] for one in every if "error" in one[name]]
            every[0][name] |= {"error": errors[0]} if errors else {}
        found[world] = every[0]
    return found


@pytest.fixture
def of(results: dict[int, dict[str, Results]]) -> Callable[[int, str], Results]:
    """The results of a scenario; its failure in any process is the test's."""

    def found(world: int, scenario: str) -> Results:
        assert "error" not in results[world][scenario], results[world][scenario]["error"]
        return results[world][scenario]

    return found


class InHalf(nn.Module):
    """What mixed precision of FSDP means, in one process: weights and x in bfloat16, the parameters kept in fp32."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        weights = {name: p.to(BF16) for name, p in self.inner.named_parameters()}
        return functional_call(self.inner, weights, (x.to(BF16),))


def alone(dtype: torch.dtype, half: bool = False) -> Results:
    """Parameters after the same steps over the whole batch in this process, eager."""
    model = processes.net().to(dtype)
    x, target = (t.to(dtype) for t in processes.data())
    with aim_fast.use_backend("eager"):
        processes.train(InHalf(model) if half else model, x, target)
    return processes.parameters(model)


TRAINED = [name for name in SCENARIOS if not name.startswith(("operator", "refusals"))]


@MANY
@pytest.mark.parametrize("scenario", TRAINED)
def test_training(of: Callable[[int, str], Results], scenario: str, world: int) -> None:
    """Every parameter, the frozen ones among them, and that training moved the others."""
    got = of(world, scenario)
    start = processes.parameters(processes.net())
    for name in start:
        assert torch.equal(got[name], start[name]) == name.startswith("backbone"), name
    assert_judged(got, alone(torch.float32, half="half" in scenario), alone(torch.float64))


@MANY
@pytest.mark.parametrize("scenario", ["operator_cut", "operator_whole", "operator_rows"])
def test_operator(of: Callable[[int, str], Results], scenario: str, world: int) -> None:
    """y and the gradient of each argument: whole in the end, however the tensors lie."""
    tensors = processes.arguments()
    got = of(world, scenario)
    y = exact(tensors, None, skip=True)["y"]
    dy = 2 * y.float()
    assert_judged(got, evaluate(composition, tensors, dy, skip=True), exact(tensors, 2 * y, skip=True))


@MANY
@pytest.mark.parametrize("scenario", ["operator_cut_twice", "operator_rows_twice"])
def test_second_derivative(of: Callable[[int, str], Results], scenario: str, world: int) -> None:
    def penalties(dtype: torch.dtype) -> Results:
        leaves = {name: t.to(dtype).requires_grad_() for name, t in processes.arguments().items()}
        y = composition(**leaves, skip=True)
        grads = processes.penalty(y, leaves["x"], list(leaves.values()))
        return {"y": y.detach()} | {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}

    assert_judged(of(world, scenario), penalties(torch.float32), penalties(torch.float64))


# How each refusal begins, and the remedy it names.
REFUSALS = {
    "plain_weights": ("adapter: w1 is a plain tensor", "distribute_tensor"),
    "only_residual": ("adapter: w1 is a plain tensor", "distribute_tensor"),
    "only_scale": ("adapter: w1 is a plain tensor", "distribute_tensor"),
    "plain_bias": ("adapter: b1 is a plain tensor", "distribute_tensor"),
    "bias_whole": ("adapter: b1 lies as (Replicate(),)", "redistribute"),
    "cut_otherwise": ("adapter: w1 lies as (Shard(dim=1),)", "redistribute"),
    "rows_of_x": ("adapter: x lies as (Shard(dim=0),)", "redistribute"),
    "columns_of_x": ("adapter: x lies as (Shard(dim=2),)", "redistribute"),
    "residual_plain": ("adapter: residual is a plain tensor", "distribute_tensor"),
    "residual_placed": ("adapter: residual is a DTensor but x is not", "full_tensor"),
    "scale_plain": ("adapter: scale is trained and no DTensor", "distribute it"),
    "row_scale": ("adapter: x is placed S(0) and row_scale given", "no row_scale"),
    "hidden_width": ("shard_adapters: model has H = 3; expected a multiple of the", "another mlp_ratio"),
    "mesh": ("shard_adapters: mesh has 2 dimensions", "mesh['tp']"),
}


@MANY
def test_refusals(of: Callable[[int, str], Results], world: int) -> None:
    """Each is a ValueError on every process, before anything is sent: none waits for another."""
    said = of(world, "refusals")
    assert said.keys() == REFUSALS.keys()
    for name, (begin, remedy) in REFUSALS.items():
        assert said[name].startswith(begin), said[name]
        assert remedy in said[name]
