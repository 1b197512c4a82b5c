"""The stages of gpu_check.py: each runs commands of this checkout with a limit of time and says what came of them.

Nothing here imports torch: a stage whose process crashes, or spoils its CUDA context, leaves the next ones alone.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gpu_counters
from gpu_machine import ROOT, Machine, python
from gpu_outcome import Outcome, each_kernel, forced, judged, kernels, together

LEAST_SECONDS = 5.0  # a stage with less is not begun
# Of a stage's time, when the last workload or check may begin.
BEGIN_UNTIL = 0.7
# Until a process begins its first check, beside others: torch's import, and the context on the device.
START_UP = 8.0

# What runs on a device; the others look at what a CPU has, or at no tensors. LARGE takes much of its memory and so runs
# in one process.
SUITE = ("numerics", "mixed", "nonfinite", "saved_memory", "functional")
LARGE = ("addressing",)


@dataclass(frozen=True)
class Stage:
    what: str
    seconds: float
    run: Callable[[Machine, float], Outcome]
    needs_gpu: bool = False


def build(machine: Machine, seconds: float) -> Outcome:
    """What can be built is built in place."""
    if importlib.util.find_spec("setuptools") is None:
        return Outcome("passed", "no setuptools, so nothing is compiled")
    mode = {"AIM_FAST_BUILD": os.environ.get("AIM_FAST_BUILD", "auto")}
    done = python(["setup.py", "-q", "build_ext", "--inplace"], seconds, mode)
    reason = re.search(r"aim_fast: installing without (.*)", done.output)
    came = f"without {reason[1]}" if reason else "compiled what is there" if not done.status else done.last_line
    return judged(done, False, came)


def checks(machine: Machine, seconds: float) -> Outcome:
    """tests/device_checks.py: the budget on the regimes that matter most, the bits, CUDA graphs."""
    kinds = ["thread", "numeric", "repeat", *(["graph"] if machine.gpu else ["--cases", "small"])]
    return each_kernel(machine, seconds, lambda backend, limit: device_checks(machine, backend, limit, *kinds))


def device_checks(machine: Machine, backend: str, seconds: float, *arguments: str) -> Outcome:
    within = max(0.0, BEGIN_UNTIL * (seconds - START_UP))
    command = ["tests/device_checks.py", *arguments, "--within", f"{within:.0f}"]
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


def emulated(machine: Machine, seconds: float) -> Outcome:
    """tests/beside_emulated.py: the CUDA kernels on the device beside themselves, emulated on the CPU."""
    start = time.monotonic()
    if "cuda" not in kernels(machine.device)[0]:
        return Outcome("left out", f"no CUDA kernels for {machine.device} tensors here")
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return Outcome("left out", "no C++ compiler for the emulated kernels")
    mode = {"AIM_FAST_EMULATE": "1", "AIM_FAST_BUILD": "require"}
    done = python(["setup.py", "-q", "build_ext"], 0.6 * seconds, mode)
    if done.status:
        return judged(done, False, f"the emulated kernels did not build: {done.last_line}")
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "results.pt"))
        script = "tests/beside_emulated.py"
        done = python([script, "record", file], 0.2 * seconds, forced(machine, "cuda"))
        if done.status:
            return judged(done, False, f"the calls on the device did not end: {done.last_line}")
        left = seconds - (time.monotonic() - start)
        environment = {"AIM_FAST_LIBRARY": str(ROOT / "build/emulated/libaim_fast.so"), "AIM_FAST_TEST_DEVICE": "cpu"}
        done = python([script, "compare", file, "--within", f"{BEGIN_UNTIL * left:.0f}"], left, environment)
    return judged(done, "FAILED" in done.output, done.last_line)


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


def tune(machine: Machine, seconds: float) -> Outcome:
    """`python -m aim_fast tune` of the CUDA kernels, which need no compiling; the next stages go by its table."""
    if "cuda" not in kernels(machine.device)[0]:
        return Outcome("left out", f"no CUDA kernels for {machine.device} tensors here")
    folder = {"AIM_FAST_CACHE": str(ROOT / "build/gpu-check")}
    done = python(["-m", "aim_fast", "tune", "--backends", "cuda", "--loads", "half", "amp"], seconds, folder)
    if not done.status:
        os.environ.update(folder)
    return judged(done, False, done.last_line.replace(f"{ROOT}{os.sep}", ""))


def host(machine: Machine, seconds: float) -> Outcome:
    """Host time of a call on one row."""
    each = min(1.0, seconds / 40) if machine.gpu else 0.01
    return measured("host_cost.py", ["--device", machine.device, "--seconds", f"{each:.2f}"], seconds)


def workloads(*arguments: str) -> Callable[[Machine, float], Outcome]:
    """bench_adapter.py with these arguments, whose rivals come last; one tiny case without a GPU.

    On a GPU each backend that has kernels for it is one more rival.
    """

    def run(machine: Machine, seconds: float) -> Outcome:
        within = ["--within", f"{BEGIN_UNTIL * seconds:.0f}"]
        tiny = ["--cases", "decoder_queries", "--dtypes", "fp32", "--rivals", "eager", "--seconds", "0.01"]
        chosen = ["--device", "cuda", *arguments, *kernels("cuda")[0]] if machine.gpu else tiny
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
    "build": Stage("compile and link what is there", 180, build),
    "checks": Stage("error budget, same bits from run to run, CUDA graphs", 60, checks),
    "suite": Stage("the numeric tests on the device", 120, suite, needs_gpu=True),
    "memcheck": Stage("compute-sanitizer memcheck on small cases", 30, sanitizer("memcheck"), needs_gpu=True),
    "racecheck": Stage("compute-sanitizer racecheck on small cases", 30, sanitizer("racecheck"), needs_gpu=True),
    "tune": Stage("the plans of the CUDA kernels, measured", 60, tune, needs_gpu=True),
    "host": Stage("host time of a call on one row", 20, host),
    "workloads": Stage("every workload and dtype beside eager", 130, workloads(*_ALL, "--rivals", "eager")),
    "ncu": Stage("what each kernel takes of DRAM, L2 and tensor cores", 40, gpu_counters.stage, needs_gpu=True),
    "emulated": Stage("the CUDA kernels beside themselves, emulated on the CPU", 90, emulated, needs_gpu=True),
    "forward": Stage("AIM's forwards beside torch.compile", 90, workloads("--pass", "forward", *_AIM), needs_gpu=True),
    "train": Stage("train step of the same", 90, workloads("--pass", "train", *_AIM), needs_gpu=True),
    "rivals": Stage("every workload beside torch.compile", 200, workloads(*_ALL, *_RIVALS), needs_gpu=True),
}
