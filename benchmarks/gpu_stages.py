"""The stages of gpu_check.py: each runs commands of this checkout with a limit of time and says what came of them.

Those that judge results, and those that compile, take CPU time and so run beside each other; what is timed runs alone.

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
from functools import partial
from pathlib import Path
from typing import Any

import gpu_counters
import limited
from gpu_machine import ROOT, Machine, python
from gpu_outcome import Outcome, each_kernel, forced, judged, kernels, together

# Of a stage's time, when the last workload or check may begin.
BEGIN_UNTIL = 0.7
# Until a process begins its first check, beside others: torch's import, and the context on the device.
START_UP = 8.0

# What runs on a device; the others look at what a CPU has, or at no tensors. LARGE takes much of its memory and so runs
# in one process.
SUITE = ("numerics", "mixed", "nonfinite", "saved_memory", "functional")
LARGE = ("addressing",)

# What is compiled ahead, each by a process: the CUDA kernels need none, max-autotune would take too long.
_HALF = (
    "aim_b_8f aim_b_32f",
    "aim_l_8f aim_l_32f",
    "aim_b_8f_mlp aim_b_8f_tin aim_b_tail",
    "swin_s1 swin_s2 swin_s3 swin_s4",
    "sam_h_window adaptformer one_image aim_b_eval",
)
AHEAD = {
    **{f"bf16 {cases.split()[0]}": f"--cases {cases} --dtypes bf16 --rivals eager compile triton" for cases in _HALF},
    **{f"fp16 {cases.split()[0]}": f"--cases {cases} --dtypes fp16 --rivals eager triton" for cases in _HALF},
    "fp32": "--dtypes fp32 --rivals eager triton",
}


@dataclass(frozen=True)
class Stage:
    """seconds: its limit. takes: what is planned for it, so that those before "train" leave time for that.

    beside: it times nothing, and runs at once with those next to it in the table that time nothing either.
    """

    what: str
    seconds: float
    takes: float
    run: Callable[[Machine, float], Outcome]
    needs_gpu: bool = False
    beside: bool = False


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
    return each_kernel(machine, seconds, lambda backend, limit: device_checks(machine, backend, limit, *kinds), True)


def device_checks(machine: Machine, backend: str, seconds: float, *arguments: str) -> Outcome:
    within = max(0.0, BEGIN_UNTIL * (seconds - START_UP))
    command = ["tests/device_checks.py", *arguments, "--within", f"{within:.0f}"]
    done = python(command, seconds, forced(machine, backend))
    return judged(done, "FAILED" in done.output, done.last_line)


def suite(machine: Machine, seconds: float) -> Outcome:
    """The numeric tests on the device; without pytest every regime of the budget in their place, and says so."""
    # The other cores are for the stages that run beside this one.
    spread = ["-n", str(max(1, 3 * (os.cpu_count() or 1) // 8)), "--dist", "worksteal"] if machine.xdist else []

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
        parts = {"large": (LARGE, []), "others": (SUITE, spread)}
        return together(limited.at_once({part: partial(tests, backend, limit, *of) for part, of in parts.items()}))

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


def warm(machine: Machine, seconds: float) -> Outcome:
    """What the benchmarks will need, compiled into the caches on disk; what is timed beside so much counts nowhere."""
    jobs = {name: partial(benchmark, f"{arguments} --seconds 0.001", seconds) for name, arguments in AHEAD.items()}
    return together(limited.at_once(jobs))


def tune(machine: Machine, seconds: float) -> Outcome:
    """`python -m aim_fast tune` of the CUDA kernels by their rules, no compiling; the next stages go by its table."""
    if "cuda" not in kernels(machine.device)[0]:
        return Outcome("left out", f"no CUDA kernels for {machine.device} tensors here")
    folder = {"AIM_FAST_CACHE": str(ROOT / "build/gpu-check")}
    done = python(["-m", "aim_fast", "tune", "--backends", "cuda", "--rules"], seconds, folder)
    if not done.status:
        os.environ.update(folder)
    return judged(done, False, done.last_line.replace(f"{ROOT}{os.sep}", ""))


def host(machine: Machine, seconds: float) -> Outcome:
    """Host time of a call on one row."""
    each = min(1.0, seconds / 40) if machine.gpu else 0.01
    return measured("host_cost.py", ["--device", machine.device, "--seconds", f"{each:.2f}"], seconds)


def workloads(arguments: str, each_backend: bool = False) -> Callable[[Machine, float], Outcome]:
    """bench_adapter.py with these arguments, whose rivals come last; one tiny case without a GPU.

    each_backend: each that has kernels for the GPU is one more rival.
    """

    def run(machine: Machine, seconds: float) -> Outcome:
        if not machine.gpu:
            return benchmark("--cases decoder_queries --dtypes fp32 --rivals eager --seconds 0.01", seconds, "cpu")
        return benchmark(" ".join([arguments, *(kernels("cuda")[0] if each_backend else ())]), seconds)

    return run


def benchmark(arguments: str, seconds: float, device: str = "cuda") -> Outcome:
    within = f"{BEGIN_UNTIL * seconds:.0f}"
    return measured("bench_adapter.py", ["--device", device, *arguments.split(), "--within", within], seconds)


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


_ALL = "--dtypes bf16 fp16 fp32 --seconds 0.15"
_BF16 = "--dtypes bf16 --seconds 0.15 --rivals eager compile"
_AIM = "--cases aim_* --dtypes bf16 --seconds 0.4 --rivals eager autotune"
_MEMCHECK, _RACECHECK = sanitizer("memcheck"), sanitizer("racecheck")
_FORWARD, _TRAIN = workloads(f"--pass forward {_AIM}"), workloads(f"--pass train {_AIM}")
_RIVALS = workloads(f"{_ALL} --rivals eager compile autotune", each_backend=True)
_GPU: Any = {"needs_gpu": True}
_BESIDE: Any = {"needs_gpu": True, "beside": True}

# In the order in which they run: first what is right, then what is fast; what takes longest to compile comes last.
# Limit, and what it takes: measured on an H200 with 16 cores, 2026-11-27, or the limit; of "workloads", which ended 29
# of 38 in 118 s there, reckoned for a host that is as fast as others were. What comes after "train" is for who gives
# more time, or asks for it by name.
STAGES = {
    "build": Stage("compile and link what is there", 180, 50, build),
    "checks": Stage("error budget, same bits from run to run, CUDA graphs", 25, 25, checks),
    "suite": Stage("the numeric tests on the device", 105, 105, suite, **_BESIDE),
    "memcheck": Stage("compute-sanitizer memcheck on small cases", 100, 100, _MEMCHECK, **_BESIDE),
    "racecheck": Stage("compute-sanitizer racecheck on small cases", 100, 100, _RACECHECK, **_BESIDE),
    "warm": Stage("compile ahead what the benchmarks will need", 90, 90, warm, **_BESIDE),
    "tune": Stage("the families of the CUDA kernels, measured", 80, 60, tune, **_GPU),
    "host": Stage("host time of a call on one row", 20, 14, host),
    "workloads": Stage("every workload and dtype beside eager", 150, 105, workloads(f"{_ALL} --rivals eager", True)),
    "compile": Stage("every workload in bf16 beside torch.compile", 65, 58, workloads(_BF16), **_GPU),
    "forward": Stage("AIM's forwards beside max-autotune", 60, 60, _FORWARD, **_GPU),
    "train": Stage("train step of the same", 90, 90, _TRAIN, **_GPU),
    "ncu": Stage("what each kernel takes of DRAM, L2 and tensor cores", 40, 40, gpu_counters.stage, **_GPU),
    "emulated": Stage("the CUDA kernels beside themselves, emulated on the CPU", 90, 90, emulated, **_GPU),
    "rivals": Stage("every workload beside torch.compile and max-autotune", 200, 200, _RIVALS, **_GPU),
}
