"""The stages of `make gpu-check` on a GPU: what they run, answered by hand, and what they say of it."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import bench_adapter
import gpu_counters
import gpu_outcome
import gpu_report
import gpu_stages
import harness
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
    assert sorted(environment["AIM_FAST_TEST_BACKEND"] for _, environment in runs) == ["cuda", "triton"]
    for command, environment in runs:
        assert "thread numeric repeat graph --within 37" in command
        assert environment["AIM_FAST_TEST_DEVICE"] == "cuda"
        assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)


def test_a_kernel_has_the_time_that_those_before_it_left(
    commands: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands["kernels"] = Done(0, '["cuda", "triton", "third"]', 1.0, False)
    now, limits = [0.0], {}

    def check(backend: str, limit: float) -> Outcome:
        limits[backend] = limit
        now[0] += 48.0
        return Outcome("passed", "right")

    monkeypatch.setattr(gpu_outcome.time, "monotonic", lambda: now[0])
    outcome = gpu_outcome.each_kernel(H100, 100.0, check)
    assert limits == {"cuda": 100.0, "triton": 52.0}
    assert (outcome.status, outcome.text) == ("out of time", "cuda: right; triton: right; third: not begun")


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
    assert command.endswith("-m aim_fast tune --backends cuda --rules")
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
    large, others = sorted((command for command, *_ in commands["seen"] if "pytest" in command), key=len)
    for command, names in ((large, gpu_stages.LARGE), (others, gpu_stages.SUITE)):
        files = [word for word in command.split() if word.startswith("tests/")]
        assert files == [f"tests/test_{name}.py" for name in names]
        assert all((ROOT / file).exists() for file in files)


@pytest.mark.parametrize(("cores", "workers"), [(16, 6), (2, 1), (None, 1)])
def test_only_the_small_tests_share_the_gpu_and_not_all_cores(
    commands: dict[str, Any], monkeypatch: pytest.MonkeyPatch, cores: int | None, workers: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    gpu_stages.suite(replace(H100, xdist=True), 100.0)
    large, others = sorted((command for command, *_ in commands["seen"] if "pytest" in command), key=len)
    assert "--dist" not in large
    assert f"-n {workers} --dist worksteal" in others


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
        ("workloads", "eager cuda triton"),
        ("compile", "eager compile"),
        ("forward", "eager autotune"),
        ("train", "eager autotune"),
        ("rivals", "eager compile autotune cuda triton"),
    ):
        commands["answers"] = {"bench_adapter": wrote(0, False, "", rows=[{}], problems=[])}
        assert STAGES[name].run(H100, 100.0).status == "passed"
        assert f"--rivals {rivals} --within 70" in commands["seen"][-1][0]


def test_what_is_timed_beside_a_compiler_is_compiled_ahead() -> None:
    """Each workload once, beside what the stages that time it have to compile."""
    ahead = [bench_adapter.parse(arguments.split()) for arguments in gpu_stages.AHEAD.values()]
    assert all({"eager", "triton"} <= set(options.rivals) for options in ahead)
    assert {dtype for options in ahead if "compile" in options.rivals for dtype in options.dtypes} == {"bf16"}
    compiled = [str(workload) for options in ahead for workload in options.workloads]
    assert sorted(compiled) == sorted(str(workload) for workload in harness.select(["*"], [*harness.DTYPES]))


def test_what_is_compiled_ahead_runs_at_once_and_leaves_no_rows(commands: dict[str, Any]) -> None:
    """And a wrong result, or a crash, of one process takes nothing from the others."""
    together = threading.Barrier(len(gpu_stages.AHEAD), timeout=60)

    def answer(command: Sequence[str]) -> Done:
        together.wait()
        words = " ".join(command)
        if "swin_s1" in words and "fp16" in words:
            return Done(-11, "Segmentation fault", 1.0, False)
        return wrote(0, False, "", rows=[{}, {}], problems=["a: wrong"] if "fp32" in words else [])(command)

    commands["answers"] = {"bench_adapter": answer}
    outcome = STAGES["warm"].run(H100, 90.0)
    assert outcome.status == "failed"
    assert "bf16 aim_b_8f: 2 rows" in outcome.text
    assert "fp16 swin_s1: exit status -11: 0 rows; Segmentation fault" in outcome.text
    assert "fp32: 2 rows; a: wrong" in outcome.text
    assert not outcome.results
    seen = [(command, seconds) for command, _, seconds in commands["seen"]]
    assert len(seen) == len(gpu_stages.AHEAD)
    assert all("--device cuda" in command and "--seconds 0.001 --within 63" in command for command, _ in seen)
    assert {seconds for _, seconds in seen} == {90.0}


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
