"""`make gpu-check`: the whole script without a GPU; the order of its stages, their time, and what it exits with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import gpu_check
import gpu_machine
import gpu_outcome
import limited
from gpu_machine import ROOT, Machine
from gpu_outcome import Outcome
from gpu_stages import STAGES, Stage
from limited import Done

H100 = Machine("2.11.0+cu130", "NVIDIA H100 80GB HBM3", pytest=True, xdist=False, sanitizer=None)


@pytest.fixture(scope="module")
def without_gpu(tmp_path_factory: pytest.TempPathFactory, cpu_library: None) -> tuple[str, dict[str, Any], str]:
    """One whole run of the script: what it printed, its results, its Markdown."""
    folder = tmp_path_factory.mktemp("gpu_check")
    command = [sys.executable, "benchmarks/gpu_check.py", "--output", str(folder)]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=hidden, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = folder.glob("no-gpu-*.json")
    return done.stdout, json.loads(results.read_text()), results.with_suffix(".md").read_text()


def test_without_a_gpu_the_host_parts_run(without_gpu: tuple[str, dict[str, Any], str]) -> None:
    _, results, _ = without_gpu
    stages = results["stages"]
    assert list(stages) == list(STAGES)
    passed = {name for name, stage in stages.items() if stage["status"] == "passed"}
    assert passed == {"build", "checks", "host", "workloads"}
    assert stages["checks"]["text"].endswith(" checks of cpu on cpu, 0 failed")
    assert [(row["name"], row["pass"]) for row in results["rows"]] == [
        ("decoder_queries", "forward"),
        ("decoder_queries", "train"),
    ]
    assert len(results["host"]) == 12


def test_without_a_gpu_the_rest_is_left_out_and_says_so(without_gpu: tuple[str, dict[str, Any], str]) -> None:
    printed, results, text = without_gpu
    left_out = {name for name, stage in results["stages"].items() if stage["status"] == "left out"}
    assert left_out == {name for name, stage in STAGES.items() if stage.needs_gpu}
    for name in left_out:
        assert f"| {name} | left out | 0 | needs an NVIDIA GPU" in text
        assert f"== {name}: left out in 0 s; needs an NVIDIA GPU" in printed


def test_a_plain_checkout_finds_its_kernels(tmp_path: Path) -> None:
    for folder in ("aim_fast", "kernels"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    found = gpu_machine.python(["-c", "import aim_fast.kernels as k; print(k.__file__)"], 60, root=tmp_path)
    assert found.last_line == str(tmp_path / "kernels" / "__init__.py")


def outcomes_of(table: dict[str, Stage], monkeypatch: pytest.MonkeyPatch, seconds: float = 500.0) -> dict[str, Outcome]:
    monkeypatch.setattr(gpu_check, "STAGES", table)
    outcomes: dict[str, Outcome] = {}
    for done in gpu_check.run(H100, list(table), seconds):
        outcomes |= done
    return outcomes


def test_stages_share_the_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now, limits = [0.0], {}

    def stage(name: str, takes: float) -> Stage:
        def run(machine: Machine, seconds: float) -> Outcome:
            limits[name] = seconds
            now[0] += takes
            return Outcome("passed", "")

        return Stage("", 60.0, takes, run)

    table = {name: stage(name, takes) for name, takes in (("a", 30.0), ("b", 60.0), ("c", 8.0), ("d", 1.0))}
    monkeypatch.setattr(gpu_check.time, "monotonic", lambda: now[0])
    outcomes = outcomes_of(table, monkeypatch, 100.0)
    assert limits == {"a": 60.0, "b": 60.0, "c": 10.0}
    assert outcomes["d"].status == "out of time"
    assert "d: out of time in 0 s; not begun" in capsys.readouterr().out


def test_what_times_nothing_runs_at_once_and_the_rest_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the three waits for the others; whatever else runs sees none of them."""
    together, running = threading.Barrier(3, timeout=60), []

    def stage(name: str, beside: bool) -> Stage:
        def run(machine: Machine, seconds: float) -> Outcome:
            running.append(name)
            if beside:
                together.wait()
            came = Outcome("passed", f"{name} beside {len(running) - 1}")
            if beside:
                together.wait()
            running.remove(name)
            return came

        return Stage("", 60.0, 1.0, run, beside=beside)

    outcomes = outcomes_of({name: stage(name, name in "bcd") for name in "abcde"}, monkeypatch)
    assert [outcome.text for outcome in outcomes.values()] == [
        "a beside 0",
        "b beside 2",
        "c beside 2",
        "d beside 2",
        "e beside 0",
    ]
    assert list(outcomes) == list("abcde")


def test_a_stage_that_breaks_leaves_the_others_their_outcomes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(machine: Machine, seconds: float) -> Outcome:
        raise ValueError("no JSON")

    def ends(machine: Machine, seconds: float) -> Outcome:
        return Outcome("out of time", "half", results={"rows": [1]})

    runs = {"a": breaks, "b": ends, "c": breaks, "d": ends}
    table = {name: Stage("", 60.0, 1.0, run, beside=name in "ab") for name, run in runs.items()}
    outcomes = outcomes_of(table, monkeypatch)
    assert {name: outcome.status for name, outcome in outcomes.items()} == dict.fromkeys(
        "ac", "failed"
    ) | dict.fromkeys("bd", "out of time")
    assert outcomes["a"].text == "ValueError: no JSON"
    assert outcomes["b"].results == {"rows": [1]}
    printed = capsys.readouterr()
    assert "== b: out of time in 0 s; half" in printed.out
    assert 'raise ValueError("no JSON")' in printed.err


def test_commands_of_stages_side_by_side_say_whose_lines_they_print(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def says(machine: Machine, seconds: float) -> Outcome:
        code = "import sys; print('one'); print('two'); sys.exit(3)"
        return gpu_outcome.judged(gpu_machine.python(["-S", "-c", code], seconds), False, "said")

    table = {name: Stage("", 60.0, 1.0, says, beside=name != "alone") for name in ("left", "right", "alone")}
    outcomes = outcomes_of(table, monkeypatch)
    assert {outcome.text for outcome in outcomes.values()} == {"exit status 3: said"}
    lines = capfd.readouterr().out.splitlines()
    for line in ("  left: one", "  left: two", "  right: one", "  right: two", "  one", "  two"):
        assert lines.count(line) == 1


def test_what_is_timed_runs_alone_and_begins_in_time() -> None:
    """By what the stages take; the limits of those that were measured leave room for a slower machine."""
    beside = [name for name, stage in STAGES.items() if stage.beside]
    assert beside == ["suite", "memcheck", "racecheck", "warm"]
    names = list(STAGES)
    at_once = names.index(beside[0])
    assert names[at_once : at_once + len(beside)] == beside
    planned = {name: stage.takes for name, stage in STAGES.items()}
    assert all(planned[name] <= stage.seconds for name, stage in STAGES.items())
    alone = names[: names.index("train")]
    before = sum(planned[name] for name in alone if name not in beside) + max(planned[name] for name in beside)
    assert before + 30 <= gpu_check.TOTAL_SECONDS
    for name in ("forward", *beside):
        assert STAGES[name].seconds <= max(planned[other] for other in (name, *(beside if name in beside else ())))


def test_a_stage_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One of those that run beside others, too; and what had ended before Ctrl-C is kept."""
    monkeypatch.setattr(gpu_machine, "look", lambda: H100)

    def interrupted(machine: Machine, seconds: float) -> Outcome:
        raise KeyboardInterrupt

    monkeypatch.setattr(limited, "_ended", threading.Event())
    for name, run in (
        ("build", lambda *_: Outcome("passed", "")),
        ("warm", lambda *_: Outcome("passed", "alone")),
        ("tune", interrupted),
    ):
        monkeypatch.setitem(STAGES, name, replace(STAGES[name], run=run))
    assert gpu_check.main(["warm", "--output", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*.json")
    assert list(json.loads(file.read_text())["stages"]) == ["warm"]
    file.unlink()
    with pytest.raises(KeyboardInterrupt):
        gpu_check.main(["build", "warm", "tune", "--output", str(tmp_path)])
    stages = json.loads(file.read_text())["stages"]
    assert {name: stage["text"] for name, stage in stages.items()} == {"build": "", "warm": "alone"}


def test_one_command_leaves_one_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every stage of a GPU, its commands answered: each rival's ratio is in AIM's line, by its own stage."""
    file = next((ROOT / "benchmarks/results").glob("nvidia-*.json"))
    template = next(
        row for row in json.loads(file.read_text())["rows"] if (row["name"], row["pass"]) == ("aim_b_8f", "forward")
    )
    # By what stands in a stage's command and no other's; fused takes longer from stage to stage.
    fused = {"fp16 fp32 --seconds 0.15 --rivals eager cuda": 1.0, "eager compile --within": 2.0, "eager autotune": 4.0}

    def run(command: Sequence[str], seconds: float, folder: Path, environment: dict[str, str]) -> Done:
        words = " ".join(command)
        if "judge.kernels_of" in words:
            return Done(0, '["cuda", "triton"]', 1.0, False)
        if "bench_adapter" in words and "--pass train" not in words:
            took = next((time for key, time in fused.items() if key in words), None)
            if took is not None:
                rivals = words.partition("--rivals ")[2].partition(" --within")[0].split()
                ratios = dict.fromkeys(rivals, 10.0 / took)
                us = {"fused": {"median": took}} | {rival: {"median": 10.0} for rival in rivals}
                rows = [template | {"speedup": ratios, "us": us}]
                Path(command[command.index("--json") + 1]).write_text(json.dumps({"rows": rows}))
        return Done(0, "1 passed", 1.0, False)

    monkeypatch.setattr(gpu_machine, "look", lambda: H100)
    monkeypatch.setattr(limited, "run", run)
    monkeypatch.setenv("AIM_FAST_CACHE", "restored after tune")
    gpu_outcome.kernels.cache_clear()
    assert gpu_check.main(["--output", str(tmp_path), "--seconds", "2000"]) == 0
    gpu_outcome.kernels.cache_clear()
    (text,) = (file.read_text() for file in tmp_path.glob("*.md"))
    assert [line.split(" | ")[0] for line in text.splitlines()[4 : 4 + len(STAGES)]] == [f"| {name}" for name in STAGES]
    head = "| pass | cases | x eager | x compile | x autotune | x cuda | x triton | memory kept"
    assert head in text
    assert "| forward | 1 | 10.00 of 1 | 5.00 of 1 | 2.50 of 1 | 10.00 of 1 | 10.00 of 1 |" in text


@pytest.mark.parametrize(("status", "code"), [("passed", 0), ("left out", 0), ("out of time", 0), ("failed", 1)])
def test_exit_status(status: str, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_machine, "look", lambda: H100)
    monkeypatch.setattr(gpu_check, "run", lambda *_: [{"checks": Outcome(status, "what | came")}])
    assert gpu_check.main(["checks", "--output", str(tmp_path)]) == code
    (text,) = tmp_path.glob("nvidia-h100-80gb-hbm3-20*.md")
    assert f"| checks | {status} | 0 | what / came |" in text.read_text()


def test_bad_arguments_and_a_python_without_torch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        gpu_check.main(["chekcs"])
    assert "stage chekcs is unknown; expected some of build, checks" in capsys.readouterr().err
    monkeypatch.setattr(limited, "run", lambda *_: Done(1, "ModuleNotFoundError: torch", 1.0, False))
    assert gpu_check.main([]) == 2
    assert "has no working torch; name one that has: make gpu-check PYTHON=" in capsys.readouterr().out
