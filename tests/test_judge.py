"""The way to the device under test: which backends it has, and that layouts arrive there as the test made them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
import torch

import aim_fast
import conftest
import judge
from judge import Tensors
from numeric_cases import CASES, build

# The values stay behind on this device; shapes, strides and offsets are as on a real one.
ELSEWHERE = "meta"
SMALL = [name for name, case in CASES.items() if case.shape[0] < 300]


@pytest.mark.parametrize("name", SMALL)
def test_layouts_arrive(name: str) -> None:
    tensors, dy, _ = build(CASES[name])
    there = judge.all_placed(tensors | {"dy": dy}, ELSEWHERE)
    for argument, t in (tensors | {"dy": dy}).items():
        if t is None:
            assert there[argument] is None
            continue
        moved = there[argument]
        assert moved.device.type == ELSEWHERE
        assert (moved.shape, moved.dtype, moved.stride()) == (t.shape, t.dtype, t.stride()), argument
        assert moved.storage_offset() == t.storage_offset(), argument


def test_a_tensor_that_is_there_is_not_copied() -> None:
    t = torch.ones(3, 4, requires_grad=True)
    assert judge.placed(t, "cpu") is t


def test_results_come_back_to_where_x_was(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def function(**arguments) -> torch.Tensor:
        seen.append({t.device.type for t in arguments.values()})
        return torch.ones(3, 4) * arguments["x"].shape[0]

    monkeypatch.setattr(judge, "placed", lambda t, device: t.to(ELSEWHERE))
    results = judge.evaluate(function, {"x": torch.ones(3, 4), "w1": torch.ones(2, 4)}, None)
    assert seen == [{ELSEWHERE}]
    assert results["y"].device.type == "cpu"


def test_kernels_of_a_device(cpu_library: None) -> None:
    assert "cpu" in judge.kernels_of("cpu")
    assert not {"cpu", "eager"} & set(judge.kernels_of(ELSEWHERE))


def test_forced_backend_is_what_runs(tmp_path: Path) -> None:
    """With the variable, the fixtures force that backend: an error of a forced kernel becomes eager's answer."""
    tests = [f"{Path(__file__).parent / 'test_functional.py'}::test_torch_func_names_its_limit"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:benchmark", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(
        command, env=os.environ | {"AIM_FAST_TEST_BACKEND": "eager"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "DID NOT RAISE" in done.stdout


@pytest.mark.parametrize(
    ("backend", "text", "outcome"),
    [
        ("triton", "adapter: backend 'triton' cannot take this call: no tile", pytest.skip.Exception),
        ("triton", "adapter: scale is too long", ValueError),
        ("cpu", "adapter: backend 'cpu' cannot take this call", ValueError),
    ],
)
def test_only_a_limit_of_another_backend_skips(
    backend: str, text: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conftest, "BACKEND", backend)
    call = conftest.pytest_pyfunc_call(cast(pytest.Function, None))
    next(call)
    with pytest.raises((ValueError, pytest.skip.Exception), match=text) as raised:
        call.throw(ValueError(text))
    assert raised.type is outcome


@pytest.mark.parametrize(("error", "right"), [(3e-5, True), (6e-5, False)])
@pytest.mark.parametrize("device", ["cpu", ELSEWHERE])
def test_a_single_number_is_judged_by_eager_twice(
    monkeypatch: pytest.MonkeyPatch, device: str, error: float, right: bool
) -> None:
    """Eager happens to be right on the device and is off by 1e-5 on the CPU, where no second run is asked for."""

    vector = torch.tensor([1.0, 2.0])

    def played(function, tensors, dy, device=device, **options) -> Tensors:
        found = 1 + error if function is aim_fast.adapter else 1 + (device == "cpu") * 1e-5
        return {"dscale": torch.tensor([found]), "dx": vector}

    monkeypatch.setattr(judge, "DEVICE", device)
    monkeypatch.setattr(judge, "evaluate", played)
    monkeypatch.setattr(judge, "exact", lambda *_, **__: {"dscale": torch.ones(1).double(), "dx": vector.double()})
    if right:
        judge.judge({}, None)
        return
    with pytest.raises(AssertionError, match="dscale: error 6"):
        judge.judge({}, None)


@pytest.mark.parametrize("fault", [0.0, 1e-4, float("nan")])
def test_a_model_is_judged_by_eagers_worst_tensor(fault: float) -> None:
    truth = {name: torch.tensor([1.0, -2.0], dtype=torch.float64) for name in ("a", "b")}
    eager = {"a": truth["a"].float() * (1 + 1e-5), "b": truth["b"].float()}
    ours = {"a": truth["a"].float(), "b": truth["b"].float() * (1 + 3e-5 + fault)}
    if fault == 0:
        judge.assert_model_judged(ours, eager, truth)
        return
    with pytest.raises(AssertionError, match="b: relative error"):
        judge.assert_model_judged(ours, eager, truth)
