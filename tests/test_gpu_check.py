"""`make gpu-check`: the whole script without a GPU, and its stages with the commands of a GPU's answered by hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import gpu_check
import gpu_counters
import gpu_machine
import gpu_outcome
import gpu_report
import gpu_stages
import limited
from gpu_machine import ROOT, Machine
from gpu_outcome import Outcome
from gpu_stages import STAGES
from limited import Done

H100 = Machine(
    "2.11.0+cu130",
    "NVIDIA H100 80GB HBM3",
    pytest=True,
    xdist=False,
    sanitizer="/cuda/compute-sanitizer",
    ncu="/cuda/ncu",
)
NO_GPU = replace(H100, gpu=None, sanitizer=None, ncu=None)


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


Answer = Callable[[Sequence[str]], Done]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Commands are answered from `answers` by a word that they contain; those that were asked for are in `seen`."""
    state: dict[str, Any] = {"answers": {}, "seen": [], "kernels": Done(0, '["triton"]', 1.0, False)}

    def run(command: Sequence[str], seconds: float, folder: Path, environment: dict[str, str]) -> Done:
        state["seen"].append((" ".join(command), environment, seconds))
        if "judge.kernels_of" in " ".join(command):
            return state["kernels"]
        for word, answer in state["answers"].items():
            if word in " ".join(command):
                return answer(command) if callable(answer) else answer
        return Done(0, "", 1.0, False)

    monkeypatch.setattr(limited, "run", run)
    gpu_outcome.kernels.cache_clear()
    yield state
    gpu_outcome.kernels.cache_clear()


def test_checks_go_to_every_kernel_of_the_device(commands: dict[str, Any]) -> None:
    commands["kernels"] = Done(0, 'noise\n["triton", "cuda"]\n', 1.0, False)
    commands["answers"] = {"device_checks": Done(0, "40 checks, 0 failed", 1.0, False)}
    outcome = gpu_stages.checks(H100, 61.0)
    assert (outcome.status, outcome.text) == ("passed", "triton: 40 checks, 0 failed; cuda: 40 checks, 0 failed")
    (_, _), *runs = [(command, environment) for command, environment, _ in commands["seen"]]
    for (command, environment), backend in zip(runs, ("triton", "cuda"), strict=True):
        assert "thread numeric repeat graph --within 16" in command
        assert environment["AIM_FAST_TEST_DEVICE"] == "cuda"
        assert environment["AIM_FAST_TEST_BACKEND"] == backend
        assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)


@pytest.mark.parametrize("status", [0, 1])
def test_what_follows_goes_by_the_tuned_table(
    commands: dict[str, Any], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIM_FAST_CACHE", "mine")
    commands["kernels"] = Done(0, '["cuda"]', 1.0, False)
    commands["answers"] = {"aim_fast tune": Done(status, "written to FILE\n", 1.0, False)}
    outcome = gpu_stages.tune(H100, 60.0)
    assert outcome.status == ("failed" if status else "passed")
    _, (command, environment, seconds) = commands["seen"]
    assert command.endswith("-m aim_fast tune --backends cuda --loads half amp")
    assert seconds == 60.0
    assert os.environ["AIM_FAST_CACHE"] == ("mine" if status else environment["AIM_FAST_CACHE"])


def test_nothing_is_tuned_without_cuda_kernels(commands: dict[str, Any]) -> None:
    assert gpu_stages.tune(H100, 60.0).status == "left out"


@pytest.mark.parametrize(
    ("done", "status"),
    [
        (Done(0, "9 checks, 0 failed", 1.0, False), "passed"),
        (Done(1, "FAILED numeric image: y\n9 checks, 1 failed", 1.0, False), "failed"),
        (Done(-11, "Fatal Python error: Segmentation fault", 1.0, False), "failed"),
        (Done(0, "5 checks, 0 failed, 4 not begun for want of time", 1.0, False), "out of time"),
        (Done(-9, "", 1.0, True), "out of time"),
        (Done(-9, "FAILED numeric image: y", 1.0, True), "failed"),
    ],
)
def test_outcome_of_checks(commands: dict[str, Any], done: Done, status: str) -> None:
    commands["answers"] = {"device_checks": done}
    assert gpu_stages.checks(H100, 60.0).status == status


@pytest.mark.parametrize(
    ("statuses", "worst"),
    [
        (["passed", "failed"], "failed"),
        (["failed", "out of time"], "failed"),
        (["passed", "out of time", "left out"], "out of time"),
        (["left out", "passed"], "left out"),
        (["passed", "passed"], "passed"),
    ],
)
def test_outcome_of_several_is_the_worst(statuses: list[str], worst: str) -> None:
    outcomes = {f"kernel{i}": Outcome(status, "text") for i, status in enumerate(statuses)}
    together = gpu_outcome.together(outcomes)
    assert together.status == worst
    assert together.text.startswith("kernel0: text; kernel1: text")


@pytest.mark.parametrize(
    ("kernels", "why"),
    [
        (Done(0, "[]", 1.0, False), "triton no, not installed"),
        (Done(1, "ImportError: torch", 1.0, False), "ImportError"),
    ],
    ids=["none", "broken"],
)
def test_a_gpu_without_a_kernel_fails(commands: dict[str, Any], kernels: Done, why: str) -> None:
    commands["kernels"] = kernels
    commands["answers"] = {"-m aim_fast": Done(0, "triton no,\n  not installed", 1.0, False)}
    outcome = gpu_stages.checks(H100, 60.0)
    assert outcome.status == "failed"
    assert gpu_stages.checks(NO_GPU, 60.0).status == "left out"
    assert f"no backend has a kernel for cuda tensors: {why}" in outcome.text


@pytest.mark.parametrize(
    ("done", "status"),
    [
        (Done(0, "...\n900 passed in 60.00s", 1.0, False), "passed"),
        (Done(1, "FAILED tests/test_numerics.py::a\n1 failed, 9 passed in 6s", 1.0, False), "failed"),
        (Done(2, "!!! KeyboardInterrupt !!!\n500 passed in 130.00s", 1.0, True), "out of time"),
        (Done(2, "FAILED tests/test_numerics.py::a\n1 failed, 5 passed in 9s", 1.0, True), "failed"),
        (Done(5, "no tests ran in 0.1s", 1.0, False), "failed"),
    ],
)
def test_outcome_of_the_suite(commands: dict[str, Any], done: Done, status: str) -> None:
    commands["answers"] = {"pytest": done}
    outcome = gpu_stages.suite(H100, 100.0)
    assert (outcome.status, done.last_line in outcome.text) == (status, True)
    *_, large, others = (command for command, *_ in commands["seen"])
    for command, names in ((large, gpu_stages.LARGE), (others, gpu_stages.SUITE)):
        files = [word for word in command.split() if word.startswith("tests/")]
        assert files == [f"tests/test_{name}.py" for name in names]
        assert all((ROOT / file).exists() for file in files)


def test_only_the_small_tests_share_the_gpu(commands: dict[str, Any]) -> None:
    gpu_stages.suite(replace(H100, xdist=True), 100.0)
    spread = ["--dist worksteal" in command for command, *_ in commands["seen"] if "pytest" in command]
    assert spread == [False, True]


def test_without_pytest_every_regime_takes_the_place_of_the_suite(commands: dict[str, Any]) -> None:
    commands["answers"] = {"device_checks": Done(0, "110 checks, 0 failed", 1.0, False)}
    outcome = gpu_stages.suite(replace(H100, pytest=False), 100.0)
    assert "device_checks.py numeric --cases all" in commands["seen"][-1][0]
    assert outcome.status == "passed"
    assert "no pytest here" in outcome.text


CLEAN = "9 checks of triton on cuda, 0 failed\n========= {}\n"


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        (0, CLEAN.format("ERROR SUMMARY: 0 errors"), "passed"),
        (0, CLEAN.format("RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"), "passed"),
        (99, CLEAN.format("ERROR SUMMARY: 3 errors"), "failed"),
        (0, CLEAN.format("RACECHECK SUMMARY: 2 hazards displayed (0 errors, 2 warnings)"), "failed"),
        (1, CLEAN.format("ERROR SUMMARY: 0 errors"), "failed"),
        (1, "========= Error: the driver is too old", "left out"),
    ],
)
def test_outcome_of_a_sanitizer(commands: dict[str, Any], status: int, output: str, expected: str) -> None:
    commands["answers"] = {"compute-sanitizer": Done(status, output, 1.0, False)}
    assert STAGES["memcheck"].run(H100, 40.0).status == expected
    command, environment, _ = commands["seen"][-1]
    assert command.startswith("/cuda/compute-sanitizer --tool memcheck --error-exitcode 99 ")
    assert "device_checks.py calls" in command
    assert environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"


def test_without_a_sanitizer_its_stages_are_left_out(commands: dict[str, Any]) -> None:
    assert STAGES["racecheck"].run(replace(H100, sanitizer=None), 40.0).status == "left out"
    assert not commands["seen"]


def wrote(status: int, late: bool, output: str, **results: Any) -> Answer:
    """A benchmark that leaves these results."""

    def answer(command: Sequence[str]) -> Done:
        Path(command[command.index("--json") + 1]).write_text(json.dumps(results))
        return Done(status, output, 1.0, late)

    return answer


@pytest.mark.parametrize(
    ("answer", "status", "text"),
    [
        (wrote(0, False, "", rows=[{}, {}], problems=[]), "passed", "2 rows"),
        (wrote(1, False, "", rows=[{}], problems=["a: wrong"]), "failed", "1 rows; a: wrong"),
        (wrote(130, True, "", rows=[{}], problems=[]), "out of time", "1 rows"),
        (wrote(0, False, "x: left out, no time left within 9 s", rows=[{}], problems=[]), "out of time", "1 workloads"),
        (Done(1, "ImportError: no", 1.0, False), "failed", "ImportError: no"),
    ],
)
def test_outcome_of_a_benchmark(commands: dict[str, Any], answer: Any, status: str, text: str) -> None:
    commands["answers"] = {"bench_adapter": answer}
    outcome = STAGES["rivals"].run(H100, 100.0)
    assert outcome.status == status
    assert text in outcome.text
    assert "--device cuda --dtypes bf16 fp16 fp32" in commands["seen"][-1][0]
    assert "--rivals eager compile autotune triton --within" in commands["seen"][-1][0]


def test_each_backend_is_a_rival(commands: dict[str, Any]) -> None:
    commands["kernels"] = Done(0, '["cuda", "triton"]', 1.0, False)
    for name, rivals in (
        ("workloads", "eager"),
        ("forward", "eager compile autotune"),
        ("train", "eager compile autotune"),
    ):
        commands["answers"] = {"bench_adapter": wrote(0, False, "", rows=[{}], problems=[])}
        assert STAGES[name].run(H100, 100.0).status == "passed"
        assert f"--rivals {rivals} cuda triton --within" in commands["seen"][-1][0]


COMPARED = "12 calls compared, {} failed, 93.0% to 100.0% of elements equal"


@pytest.mark.parametrize(
    ("word", "done", "status"),
    [
        ("compare", Done(0, COMPARED.format(0), 1.0, False), "passed"),
        ("compare", Done(1, "FAILED hopper/0: y\n" + COMPARED.format(1), 1.0, False), "failed"),
        ("compare", Done(-11, "Segmentation fault", 1.0, False), "failed"),
        ("compare", Done(0, COMPARED.format(0) + ", 3 not begun for want of time", 1.0, False), "out of time"),
        ("record", Done(1, "RuntimeError: illegal memory access", 1.0, False), "failed"),
        ("setup.py", Done(1, "aim_fast: compilation failed: a.h: error: no", 1.0, False), "failed"),
        ("setup.py", Done(2, "", 1.0, True), "out of time"),
    ],
)
def test_outcome_of_the_emulated_kernels(
    commands: dict[str, Any], monkeypatch: pytest.MonkeyPatch, word: str, done: Done, status: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: "/bin/g++" if name == "g++" else None)
    commands["kernels"] = Done(0, '["cuda", "triton"]', 1.0, False)
    commands["answers"] = {word: done}
    outcome = STAGES["emulated"].run(H100, 60.0)
    assert (outcome.status, done.last_line in outcome.text) == (status, True)
    build, *runs = [(command, environment) for command, environment, _ in commands["seen"][1:]]
    assert build[1]["AIM_FAST_EMULATE"] == "1"
    for (command, environment), device in zip(runs, ("cuda", "cpu"), strict=False):
        assert "tests/beside_emulated.py" in command
        assert environment["AIM_FAST_TEST_DEVICE"] == device
        assert ("AIM_FAST_LIBRARY" in environment) is (device == "cpu")


def test_emulated_kernels_need_a_compiler_and_cuda_kernels(
    commands: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = STAGES["emulated"].run(H100, 60.0)
    assert (outcome.status, outcome.text) == ("left out", "no CUDA kernels for cuda tensors here")
    gpu_outcome.kernels.cache_clear()
    commands["kernels"] = Done(0, '["cuda"]', 1.0, False)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    assert STAGES["emulated"].run(H100, 60.0).text == "no C++ compiler for the emulated kernels"


ROWS = '"0","7","void aim_fast::cuda::hopper::rows_kernel<X, 192>(RowsCall)","1"'
NCU = f"""==PROF== Connected to process 7
"ID","Process ID","Kernel Name","Context","Metric Name","Metric Unit","Metric Value"
{ROWS},"gpu__time_duration.sum","nsecond","80,123"
{ROWS},"dram__throughput.avg.pct_of_peak_sustained_elapsed","%","71.26"
{ROWS},"lts__throughput.avg.pct_of_peak_sustained_elapsed","%","44.4"
{ROWS},"TENSOR","%","51.9"
"1","7","adapter_bwd_dw","1","gpu__time_duration.sum","us","95.5"
==PROF== Disconnected
"""
OLD_NAME, NEW_NAME = reversed(gpu_counters.COUNTERS["% of tensor cores"])


@pytest.mark.parametrize("name", [NEW_NAME, OLD_NAME], ids=["new", "old"])
def test_counters_of_each_kernel(commands: dict[str, Any], name: str) -> None:
    """By whichever name this ncu knows the tensor cores' counter."""
    unknown = Done(1, f"==ERROR== Failed to find metric {name}", 1.0, False)
    commands["answers"] = {name: Done(0, NCU.replace("TENSOR", name), 1.0, False), "/cuda/ncu": unknown}
    outcome = STAGES["ncu"].run(H100, 40.0)
    assert (outcome.status, outcome.text) == ("passed", "triton: 2 kernels")
    assert "--profile-from-start off" in commands["seen"][-1][0]
    assert commands["seen"][-1][0].endswith("benchmarks/gpu_counters.py triton")
    first, second = outcome.results["kernels"]
    assert first["kernel"] == "hopper::rows_kernel"
    assert [first[column] for column in gpu_counters.COUNTERS] == pytest.approx([80.123, 71.26, 44.4, 51.9])
    text = gpu_report.markdown(gpu_report.merged({}, H100, {"ncu": outcome}))
    assert "| triton | hopper::rows_kernel | 80 | 71 | 44 | 52 |" in text
    assert "| triton | adapter_bwd_dw | 96 | - | - | - |" in text
    later = gpu_report.merged(gpu_report.merged({}, H100, {"ncu": outcome}), H100, {"host": Outcome("passed", "")})
    assert later["kernels"] == [first, second]


def test_without_counters_their_stage_is_left_out(commands: dict[str, Any]) -> None:
    said = "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission"
    commands["answers"] = {"/cuda/ncu": Done(1, f"==PROF== Connected\n{said}\nmore", 1.0, False)}
    outcome = STAGES["ncu"].run(H100, 40.0)
    assert outcome.status == "left out"
    assert said in outcome.text
    assert STAGES["ncu"].run(replace(H100, ncu=None), 40.0).status == "left out"


def test_stages_share_the_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now, limits = [0.0], {}

    def stage(name: str, takes: float) -> gpu_stages.Stage:
        def run(machine: Machine, seconds: float) -> Outcome:
            limits[name] = seconds
            now[0] += takes
            return Outcome("passed", "")

        return gpu_stages.Stage("", 60.0, run)

    table = {name: stage(name, takes) for name, takes in (("a", 30.0), ("b", 60.0), ("c", 8.0), ("d", 1.0))}
    monkeypatch.setattr(gpu_check, "STAGES", table)
    monkeypatch.setattr(gpu_check.time, "monotonic", lambda: now[0])
    outcomes = gpu_check.run(H100, list(table), 100.0)
    assert limits == {"a": 60.0, "b": 60.0, "c": 10.0}
    assert outcomes["d"].status == "out of time"
    assert "d: out of time in 0 s; not begun" in capsys.readouterr().out


@pytest.mark.parametrize(("status", "code"), [("passed", 0), ("left out", 0), ("out of time", 0), ("failed", 1)])
def test_exit_status(status: str, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_machine, "look", lambda: H100)
    monkeypatch.setattr(gpu_check, "run", lambda *_: {"checks": Outcome(status, "what | came")})
    assert gpu_check.main(["checks", "--output", str(tmp_path)]) == code
    (text,) = tmp_path.glob("nvidia-h100-80gb-hbm3-20*.md")
    assert f"| checks | {status} | 0 | what / came |" in text.read_text()


def test_bad_arguments_and_a_python_without_torch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], commands: dict[str, Any]
) -> None:
    with pytest.raises(SystemExit):
        gpu_check.main(["chekcs"])
    assert "stage chekcs is unknown; expected some of build, checks" in capsys.readouterr().err
    commands["answers"] = {"import json, torch": Done(1, "ModuleNotFoundError: torch", 1.0, False)}
    assert gpu_check.main([]) == 2
    assert "has no working torch; name one that has: make gpu-check PYTHON=" in capsys.readouterr().out
