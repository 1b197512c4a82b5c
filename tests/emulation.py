"""Builds the libraries of emulated kernels, and starts processes that use the one whose CUDA kernels run on the CPU.

The kernels are the package's own sources; tests/emulator runs them. The CUDA kernels need the headers of the CUDA
toolkit, and no GPU; the CPU's kernels for AVX-512 and AMX, a library of their own, a processor with AVX2.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "build" / "emulated" / "libaim_fast.so"
ISA_LIBRARY = ROOT / "build" / "isa" / "libaim_fast.so"
EAGER, LAZY, RANDOM = range(3)  # when asynchronous work takes effect, as cuda_emulate has it


def toolkit() -> Path | None:
    """The folder of the CUDA toolkit, found as setup.py finds it; None if its headers are not there."""
    nvcc = shutil.which("nvcc")
    folders = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parent.parent, "/usr/local/cuda"]
    return next((Path(f) for f in folders if f and Path(f, "include", "cuda_fp16.h").exists()), None)


def missing() -> str:
    """Why kernels cannot be emulated here, with the remedy; empty if they can."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "the emulator of the CUDA kernels switches stacks in x86-64 assembly; run it on such a machine"
    if toolkit() is None:
        return "no headers of the CUDA toolkit, which the emulated kernels include; install it or set CUDA_HOME"
    return ""


def compiler() -> list[str]:
    """The command of the C++ compiler, with the flags of emulated kernels outside of the library."""
    command = shlex.split(os.environ.get("CXX", "")) or [next(filter(shutil.which, ("c++", "g++", "clang++")), "c++")]
    include = [f"-I{ROOT / 'tests' / 'emulator'}", f"-I{ROOT / 'csrc'}", "-isystem", f"{toolkit()}/include"]
    return [*command, "-std=c++20", "-march=native", "-fPIC", "-fno-strict-aliasing", "-w", *include]


def build(library: Path = LIBRARY) -> None:
    """Bring one of the libraries up to date; a second process waits for the first."""
    which = os.environ.get("AIM_FAST_EMULATE", "1") if library == LIBRARY else "isa"
    library.parent.mkdir(parents=True, exist_ok=True)
    with open(library.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=ROOT,
            env=os.environ | {"AIM_FAST_BUILD": "require", "AIM_FAST_EMULATE": which},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        raise RuntimeError(f"the emulated kernels do not compile:\n{done.stdout[-3000:]}")


# What a process of emulated kernels has in its environment from the start.
ENVIRONMENT = {"AIM_FAST_LIBRARY": str(LIBRARY), "AIM_FAST_BACKEND": "cuda", "OMP_NUM_THREADS": "1"}


def run_pytest(environment: dict[str, str], *arguments: str) -> str:
    """What pytest prints, run in a process of its own, in which all tests have to pass."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:benchmark", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    return done.stdout


def start() -> None:
    """Make this process one to run kernels in: new memory, results and workspace alike, is full of NaN."""
    import torch

    import aim_fast
    from interpreter import fill_new_memory

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    fill_new_memory(True)
    (reason,) = [row.reason for row in aim_fast.backends() if row.name == "cuda"]
    if reason:
        raise RuntimeError(f"the emulated kernels do not load: {reason}")
