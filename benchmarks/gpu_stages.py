"""The stages of gpu_check.py: each runs commands of this checkout with a limit of time and says what came of them.

Nothing here imports torch: a stage whose process crashes, or spoils its CUDA context, leaves the next ones alone.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from gpu_machine import Machine, python
from limited import Done

LEAST_SECONDS = 5.0  # a stage with less is not begun
# Of a stage's time, when the last workload or check may begin.
BEGIN_UNTIL = 0.7

# What runs on a device; the others look at what a CPU has, or at no tensors. LARGE takes much of its memory and so runs
# in one process.
SUITE = ("numerics", "mixed", "nonfinite", "saved_memory", "functional")
LARGE = ("addressing",)

_KERNELS = (
    "import sys, json; sys.path.insert(0, 'tests'); import judge; print(json.dumps(judge.kernels_of(sys.argv[1])))"
)


@dataclass(frozen=True)
class Outcome:
    """status: passed, failed, left out, or out of time: then what was done until then was right."""

    status: str
    text: str
    seconds: float = 0.0
    results: Mapping[str, Any] = field(default_factory=dict)  # what the stage's benchmark wrote

    def after(self, seconds: float) -> Outcome:
        return replace(self, seconds=round(seconds, 1))

    def __str__(self) -> str:
        return f"{self.status} in {self.seconds:.0f} s; {self.text}"


@dataclass(frozen=True)
class Stage:
    what: str
    seconds: float
    run: Callable[[Machine, float], Outcome]
    needs_gpu: bool = False


def judged(done: Done, failed: bool, text: str) -> Outcome:
    """failed is what the output says; a process that ended badly by itself has failed too."""
    if failed or (done.status and not done.late):
        return Outcome("failed", text if failed else f"exit status {done.status}: {text}")
    return Outcome("out of time" if done.late or "for want of time" in text else "passed", text)


def build(machine: Machine, seconds: float) -> Outcome:
    """What can be built is built in place."""
    if importlib.util.find_spec("setuptools") is None:
        return Outcome("passed", "no setuptools, so nothing is compiled")
    mode = {"AIM_FAST_BUILD": os.environ.get("AIM_FAST_BUILD", "auto")}
    done = python(["setup.py", "-q", "build_ext", "--inplace"], seconds, mode)
    reason = re.search(r"aim_fast: installing without (.*)", done.output)
    came = f"without {reason[1]}" if reason else "compiled what is there" if not done.status else done.last_line
    return judged(done, False, came)


def forced(machine: Machine, backend: str) -> dict[str, str]:
    return {"AIM_FAST_TEST_DEVICE": machine.device, "AIM_FAST_TEST_BACKEND": backend}


@cache
def kernels(device: str) -> tuple[list[str], str]:
    """The backends with a kernel for the device; and where there is none, what the package says of itself."""
    done = python(["-c", _KERNELS, device], 60)
    if done.status:
        return [], done.last_line
    names = json.loads(done.last_line)
    return names, "" if names else " ".join(python(["-m", "aim_fast"], 60).output.split())


def each_kernel(machine: Machine, seconds: float, check: Callable[[str, float], Outcome]) -> Outcome:
    """The outcomes of all backends that have a kernel for the device, as one."""
    start = time.monotonic()
    names, why = kernels(machine.device)
    if not names:
        status = "failed" if machine.gpu else "left out"
        return Outcome(status, f"no backend has a kernel for {machine.device} tensors: {why}")
    left = seconds - (time.monotonic() - start)
    return together({name: check(name, left / len(names)) for name in names})


def together(outcomes: Mapping[str, Outcome]) -> Outcome:
    """Several outcomes as one, which is the worst of them."""
    worst = min((o.status for o in outcomes.values()), key=("failed", "out of time", "left out", "passed").index)
    return Outcome(worst, "; ".join(f"{name}: {outcome.text}" for name, outcome in outcomes.items()))


def checks(machine: Machine, seconds: float) -> Outcome:
    """tests/device_checks.py: the budget on the regimes that matter most, the bits, CUDA graphs."""
    kinds = ["numeric", "repeat", *(["graph"] if machine.gpu else ["--cases", "small"])]
    return each_kernel(machine, seconds, lambda backend, limit: device_checks(machine, backend, limit, *kinds))


def device_checks(machine: Machine, backend: str, seconds: float, *arguments: str) -> Outcome:
    command = ["tests/device_checks.py", *arguments, "--within", f"{BEGIN_UNTIL * seconds:.0f}"]
    done = python(command, seconds, forced(machine, backend))
    return judged(done, "FAILED" in done.output, done.last_line)


def suite(machine: Machine, seconds: float) -> Outcome:
    """The numeric tests on the device; without pytest every regime of the budget in their place, and says so."""
    # Most of the time goes into compiling kernels, which needs cores.
    spread = ["-n", str(min(8, os.cpu_count() or 1)), "--dist", "worksteal"] if machine.xdist else []

    def tests(backend: str, limit: float, names: Sequence[str], options: Sequence[str]) -> Outcome:
        files = [f"tests/test_{name}.py" for name in names]
        command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *options, *files]
        done = python(command, limit, forced(machine, backend))
        failed = re.search(r"^(FAILED|ERROR) ", done.output, re.MULTILINE) is not None
        return judged(done, failed, done.last_line)

    def check(backend: str, limit: float) -> Outcome:
        if not machine.pytest:
            outcome = device_checks(machine, backend, limit, "numeric", "--cases", "all")
            return replace(outcome, text=f"no pytest here, so its place was taken by {outcome.text}")
        large = tests(backend, 0.3 * limit, LARGE, [])
        return together({"large": large, "others": tests(backend, 0.7 * limit, SUITE, spread)})

    return each_kernel(machine, seconds, check)


def sanitizer(tool: str) -> Callable[[Machine, float], Outcome]:
    """A tool of compute-sanitizer over calls on small cases."""
    # Each tensor in an allocation of its own, so that a step over its end is one over the end of memory.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}

    def run(machine: Machine, seconds: float) -> Outcome:
        if machine.sanitizer is None:
            return Outcome("left out", "compute-sanitizer is not on this machine")
        prefix = [machine.sanitizer, "--tool", tool, "--error-exitcode", "99"]

        def check(backend: str, limit: float) -> Outcome:
            command = ["tests/device_checks.py", "calls", "--within", f"{BEGIN_UNTIL * limit:.0f}"]
            done = python(command, limit, forced(machine, backend) | environment, prefix)
            found = re.search(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", done.output)
            counted = re.search(r"\d+ checks of .*", done.output)
            if found is None and counted is None and not done.late:
                return Outcome("left out", f"compute-sanitizer does not run here: {done.last_line}")
            wrong = done.status == 99 or (found is not None and int(found[1] or found[2]) > 0)
            return judged(done, wrong, f"{counted[0] if counted else 'no call ended'}; {done.last_line.strip('= ')}")

        return each_kernel(machine, seconds, check)

    return run


def host(machine: Machine, seconds: float) -> Outcome:
    """Host time of a call on one row."""
    each = min(1.0, seconds / 40) if machine.gpu else 0.01
    return measured("host_cost.py", ["--device", machine.device, "--seconds", f"{each:.2f}"], seconds)


def workloads(*arguments: str) -> Callable[[Machine, float], Outcome]:
    """bench_adapter.py with these arguments; one tiny case without a GPU."""

    def run(machine: Machine, seconds: float) -> Outcome:
        within = ["--within", f"{BEGIN_UNTIL * seconds:.0f}"]
        tiny = ["--cases", "decoder_queries", "--dtypes", "fp32", "--rivals", "eager", "--seconds", "0.01"]
        chosen = ["--device", "cuda", *arguments] if machine.gpu else tiny
        return measured("bench_adapter.py", [*chosen, *within], seconds)

    return run


def measured(script: str, arguments: Sequence[str], seconds: float) -> Outcome:
    """The outcome of a benchmark, with what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "results.json")
        done = python([f"benchmarks/{script}", *arguments, "--json", str(file)], seconds)
        results = json.loads(file.read_text()) if file.exists() else {}
    problems = results.get("problems", [])
    late = sum("no time left" in line for line in done.output.splitlines())
    text = f"{len(results.get('rows', results.get('host', [])))} rows"
    if late:
        text += f", {late} workloads not begun for want of time"
    if problems:
        text += f"; {'; '.join(problems)}"
    elif done.status and not done.late:
        text += f"; {done.last_line}"
    return replace(judged(done, bool(problems), text), results=results)


_ALL = ("--dtypes", "bf16", "fp16", "fp32", "--seconds", "0.4")
_RIVALS = ("--rivals", "eager", "compile", "autotune")
_AIM = ("--cases", "aim_*", "--dtypes", "bf16", "--seconds", "0.4", *_RIVALS)

# In the order in which they run: first what is right, then what is fast; what takes longest to compile comes last.
STAGES = {
    "build": Stage("compile and link what is there", 60, build),
    "checks": Stage("error budget, same bits from run to run, CUDA graphs", 60, checks),
    "suite": Stage("the numeric tests on the device", 130, suite, needs_gpu=True),
    "memcheck": Stage("compute-sanitizer memcheck on small cases", 40, sanitizer("memcheck"), needs_gpu=True),
    "racecheck": Stage("compute-sanitizer racecheck on small cases", 40, sanitizer("racecheck"), needs_gpu=True),
    "host": Stage("host time of a call on one row", 25, host),
    "workloads": Stage("every workload and dtype beside eager", 150, workloads(*_ALL, "--rivals", "eager")),
    "forward": Stage("forward of AIM's in bf16 beside torch.compile", 90, workloads(*_AIM, "--pass", "forward"), True),
    "train": Stage("train step of the same", 90, workloads(*_AIM, "--pass", "train"), True),
    "rivals": Stage("every workload beside torch.compile", 200, workloads(*_ALL, *_RIVALS), True),
}
