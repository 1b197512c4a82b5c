"""The table of backends: what it says, what it chooses, and how a choice is forced."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch

import aim_fast
from aim_fast import dispatch, reference
from judge import Tensors, make_inputs


def inputs(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensors:
    return make_inputs((7, 24), 8, dtype, device=device)


def chosen(**arguments) -> str:
    return aim_fast.explain(**arguments).backend


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """code in a fresh interpreter, with the package importable as it is here."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


def test_table(cpu_library: None) -> None:
    rows = aim_fast.backends()
    assert [row.name for row in rows] == ["cpu", "cuda", "triton", "eager"]
    assert all(row.available is (row.reason == "") for row in rows)
    assert rows[0].available
    assert rows[-1].available
    assert all(isinstance(row, aim_fast.Backend) for row in rows)
    assert rows[-1].limits == ()  # the last resort takes everything


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_automatic_choice(cpu_library: None, dtype: torch.dtype) -> None:
    explanation = aim_fast.explain(**inputs(dtype), skip=True, recompute=True)
    assert explanation.backend == "cpu"
    assert str(explanation).startswith("backend: cpu\n")


def test_automatic_choice_falls_back_and_tells(cpu_library: None) -> None:
    explanation = aim_fast.explain(**inputs(torch.float64))
    assert explanation.backend == "eager"
    assert "float32, bfloat16 and float16 only" in str(explanation)
    assert chosen(**inputs(device="meta")) == "eager"
    assert "CPU tensors only" in str(aim_fast.explain(**inputs(device="meta")))
    residual = torch.zeros(7, 24, dtype=torch.float64)
    assert chosen(**inputs(), residual=residual) == "eager"
    with torch.autograd.forward_ad.dual_level():
        assert chosen(**inputs()) == "eager"


def test_explain_is_what_runs(cpu_library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """explain() and adapter() agree, under autocast too: the composition is called exactly when it is announced."""
    compositions = []
    real = reference.composition

    def noted(*arguments: Any, **keywords: Any) -> torch.Tensor:
        compositions.append(1)
        return real(*arguments, **keywords)

    monkeypatch.setattr(reference, "composition", noted)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for backend in ("auto", "eager"):
            compositions.clear()
            with aim_fast.use_backend(backend), torch.autocast("cpu", dtype=torch.bfloat16):
                eager = chosen(**inputs(dtype)) == "eager"
                aim_fast.adapter(**inputs(dtype))
            assert bool(compositions) is eager


def test_explain_raises_as_the_call_does() -> None:
    bad = inputs() | {"w1": torch.ones(8, 25)}
    messages = []
    for function in (aim_fast.adapter, aim_fast.explain):
        with pytest.raises(ValueError, match="w1") as caught:
            function(**bad)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_use_backend_nests(cpu_library: None) -> None:
    arguments = inputs()
    with aim_fast.use_backend("eager"):
        assert chosen(**arguments) == "eager"
        with aim_fast.use_backend("cpu"):
            assert chosen(**arguments) == "cpu"
            with aim_fast.use_backend("auto"):
                assert chosen(**inputs(torch.float64)) == "eager"
        assert chosen(**arguments) == "eager"
        with pytest.raises(RuntimeError, match="inside"), aim_fast.use_backend("cpu"):
            raise RuntimeError("inside")
        assert chosen(**arguments) == "eager"
    assert chosen(**arguments) == "cpu"


def test_use_backend_is_of_its_thread(cpu_library: None) -> None:
    seen = []
    with aim_fast.use_backend("eager"):
        other = threading.Thread(target=lambda: seen.append(chosen(**inputs())))
        other.start()
        other.join()
    assert seen == ["cpu"]


def test_unknown_backend_changes_nothing(cpu_library: None) -> None:
    with (
        aim_fast.use_backend("eager"),
        pytest.raises(ValueError, match=r"'tpu'; expected one of auto, cpu, cuda, triton, eager"),
        aim_fast.use_backend("tpu"),
    ):
        pass
    assert chosen(**inputs()) == "cpu"


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [
        (inputs(torch.float64), "float32, bfloat16 and float16 only"),
        (inputs() | {"residual": torch.zeros(7, 24).double()}, "float32, bfloat16 and float16 only"),
        (inputs(device="meta"), "CPU tensors only"),
    ],
    ids=["float64", "float64_residual", "meta"],
)
def test_forced_backend_names_its_limit(fused: None, arguments: dict, limit: str) -> None:
    for function in (aim_fast.adapter, aim_fast.explain):
        with pytest.raises(ValueError, match=f"backend 'cpu' cannot take this call: .*{limit}.*use_backend"):
            function(**arguments)


def test_forced_backend_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library: automatic is eager and says why, forced raises and says why."""
    row = dispatch.Backend("cpu", "fused", (), "the compiled library is not built; install a C++ compiler")
    eager = aim_fast.backends()[-1]
    monkeypatch.setattr(dispatch, "backends", lambda: (row, eager))
    assert not row.available
    explanation = aim_fast.explain(**inputs())
    assert explanation.backend == "eager"
    assert "install a C++ compiler" in str(explanation)
    with aim_fast.use_backend("cpu"), pytest.raises(ValueError, match=r"cannot take this call: .*install a C"):
        aim_fast.adapter(**inputs())


CHOICE = """
import aim_fast
from aim_fast.testing import make_inputs
print(aim_fast.explain(**make_inputs((7, 24), 8)).backend)
"""


@pytest.mark.parametrize(("value", "expected"), [("eager", "eager"), ("auto", "cpu"), ("", "cpu"), ("cpu", "cpu")])
def test_environment_sets_the_default(cpu_library: None, value: str, expected: str) -> None:
    result = run(CHOICE, AIM_FAST_BACKEND=value)
    assert result.stdout.strip() == expected, result.stderr


def test_environment_with_an_unknown_backend() -> None:
    result = run(CHOICE, AIM_FAST_BACKEND="tpu")
    assert result.returncode != 0
    assert "backend is 'tpu'; expected one of auto, cpu, cuda, triton, eager" in result.stderr


def test_library_that_is_not_there() -> None:
    """The import works, everything runs eager, and the report tells what is missing."""
    result = run(f"{CHOICE}from aim_fast.__main__ import report; print(report())", AIM_FAST_LIBRARY="/nowhere/lib.so")
    assert result.stdout.startswith("eager\n"), result.stderr
    assert "library: /nowhere/lib.so (missing)" in result.stdout
    assert "not built" in result.stdout


def test_library_that_does_not_load(tmp_path) -> None:
    broken = tmp_path / "libaim_fast.so"
    broken.write_text("not a library")
    result = run(f"{CHOICE}print(aim_fast.backends()[0].reason)", AIM_FAST_LIBRARY=str(broken))
    assert result.stdout.startswith("eager\n"), result.stderr
    assert "does not load" in result.stdout


def test_instruction_sets(cpu_library: None) -> None:
    """Portable is always there; setting one takes effect and is undone; a name that is not there is refused."""
    ops = torch.ops.aim_fast
    available = ops.cpu_isas().split(",")
    assert "portable" in available
    assert len(set(available)) == len(available)
    before = ops.cpu_isa()
    try:
        for name in available:
            ops.cpu_set_isa(name)
            assert ops.cpu_isa() == name
        with pytest.raises((ValueError, RuntimeError), match="sse9"):
            ops.cpu_set_isa("sse9")
        assert ops.cpu_isa() == available[-1]
    finally:
        ops.cpu_set_isa(before)


ISA = "import torch, aim_fast; aim_fast.backends(); print(torch.ops.aim_fast.cpu_isa())"


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_environment_forces_a_lower_instruction_set(cpu_library: None, isa: str) -> None:
    if isa not in torch.ops.aim_fast.cpu_isas().split(","):
        pytest.skip(f"this processor does not run {isa}")
    assert run(ISA, AIM_FAST_CPU_ISA=isa).stdout.strip() == isa


def test_environment_with_an_unknown_instruction_set(cpu_library: None) -> None:
    result = run(f"{CHOICE}aim_fast.adapter(**make_inputs((7, 24), 8))", AIM_FAST_CPU_ISA="sse9")
    assert result.returncode != 0
    assert "sse9" in result.stderr
    assert "portable" in result.stderr  # what there is
