"""The compiled kernels; everything else about the package is in pyproject.toml.

csrc/ becomes one shared library, aim_fast/libaim_fast.so, compiled by ninja as csrc/ninja_file.py says. It uses
torch's stable ABI and no Python ABI, so one wheel (py3-none-PLATFORM) serves every Python >= 3.10 and every torch
>= 2.10, with CUDA or without.

An install never fails for lack of a compiler or of torch: the package then runs eager, and aim_fast/_build_info.json,
which `python -m aim_fast` shows, says why. Nor for lack of nvcc, or one that fails: the library then has no CUDA
kernels, and the file's "cuda" says why.

    AIM_FAST_BUILD=auto       build if possible (the default)
    AIM_FAST_BUILD=none       build nothing
    AIM_FAST_BUILD=require    fail if the library cannot be built
    AIM_FAST_SANITIZE=address,undefined    build build/sanitize/libaim_fast.so instead, for `make sanitize`
    AIM_FAST_EMULATE=1        build build/emulated/libaim_fast.so instead, whose CUDA kernels run on the CPU, for tests
    AIM_FAST_EMULATE=WORD     the same, and leave instances as they are whose names do not contain the word
    AIM_FAST_EMULATE=isa      build build/isa/libaim_fast.so instead, whose CPU kernels for AVX-512 and AMX run on a
                              processor that has AVX2, for tests
    AIM_FAST_CUDA_ARCHS       what nvcc compiles for, by default 80,90a; GPUs beyond the list translate what is for the
                              lowest. The kernels of csrc/cuda/hopper need 90a. Empty for no CUDA kernels
    CUDA_HOME                 where nvcc is; else the one on the PATH, else /usr/local/cuda
    CXX, CXXFLAGS             the C++ compiler and more flags for it
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
import time
from functools import partial
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

# The folder is in a source archive; nobody but this file imports from it.
sys.path.insert(0, str(Path(__file__).resolve().parent / "csrc"))
from ninja_file import EMULATE_ISA, LIBRARY, Cuda, ninja_file, number

TORCH_NEEDED = (2, 10)
SOURCES = sorted(str(path) for suffix in ("cpp", "cu") for path in Path("csrc").glob(f"**/*.{suffix}"))
# What a source archive has beside them.
HEADERS = sorted(str(path) for suffix in ("h", "py") for path in Path("csrc").glob(f"**/*.{suffix}"))
CUDA_ARCHS = "80,90a"


class CannotBuildError(Exception):
    """The library cannot be built here; the text says why and what to do."""


def find_torch() -> tuple[Path, str]:
    """The installed torch, not imported: its folder and its version."""
    spec = importlib.util.find_spec("torch")
    found = [Path(spec.origin).parent] if spec and spec.origin else []
    # pip hides the environment from an isolated build, but its folders are still known.
    folders = [sysconfig.get_path("platlib"), site.getusersitepackages()]
    found += [Path(folder, "torch") for folder in folders if Path(folder, "torch/version.py").exists()]
    needed = ".".join(map(str, TORCH_NEEDED))
    if not found:
        raise CannotBuildError(f"torch is not installed; install torch >= {needed}, then aim_fast again")
    version = re.search(r"__version__ = '(.*?)'", (found[0] / "version.py").read_text())
    text = version[1] if version else "0"
    if tuple(map(int, re.findall(r"\d+", text)[:2])) < TORCH_NEEDED:
        raise CannotBuildError(f"torch is {text}; the compiled kernels need torch >= {needed}")
    return found[0], text


def find_compiler() -> tuple[list[str], str]:
    """The command of the C++ compiler and the first line of its --version."""
    command = shlex.split(os.environ.get("CXX", "")) or [next(filter(shutil.which, ("c++", "g++", "clang++")), "c++")]
    if sys.platform != "linux":
        raise CannotBuildError(f"the compiled kernels are for Linux, this is {sys.platform}")
    if not shutil.which(command[0]):
        raise CannotBuildError(f"no C++ compiler ({command[0]} is not there); install g++ or set CXX")
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    return command, version.stdout.partition("\n")[0]


def find_cuda(*, emulate: bool) -> Cuda:
    """The CUDA toolkit, and what to compile for, lowest first. To emulate takes its headers alone."""
    archs = [arch.strip() for arch in os.environ.get("AIM_FAST_CUDA_ARCHS", CUDA_ARCHS).split(",") if arch.strip()]
    if wrong := [arch for arch in archs if not re.fullmatch(r"([89]|1\d)\d[af]?", arch)]:
        raise SystemExit(f"AIM_FAST_CUDA_ARCHS has {wrong[0]!r}; expected numbers from 80 on, as in {CUDA_ARCHS}")
    if not archs and not emulate:
        raise CannotBuildError("AIM_FAST_CUDA_ARCHS is empty; unset it and install again")
    on_path = shutil.which("nvcc")
    folders = [os.environ.get("CUDA_HOME"), on_path and Path(on_path).resolve().parent.parent, "/usr/local/cuda"]
    for folder in [Path(folder) for folder in folders if folder]:
        nvcc, include = folder / "bin/nvcc", folder / "include"
        libs = [path.parent for name in ("lib64", "lib") for path in folder.glob(f"{name}/libcudart_static.a")]
        if (include / "cuda_runtime.h").exists() and (emulate or (nvcc.exists() and libs)):
            lib = libs[0] if libs else folder
            return Cuda(nvcc, include, lib, sorted(set(archs), key=lambda arch: (number(arch), arch)))
    remedy = "install the CUDA toolkit >= 12.5 or set CUDA_HOME, then install again"
    raise CannotBuildError(f"no nvcc with headers and libraries; {remedy}")


def find_ninja() -> list[str]:
    """The command of ninja, from its pip package or the system."""
    if importlib.util.find_spec("ninja"):
        return [sys.executable, "-m", "ninja"]
    if path := shutil.which("ninja"):
        return [path]
    raise CannotBuildError("ninja is not installed; pip install ninja")


def compile_library(
    compiler: list[str], torch: Path, folder: Path, *, sanitize: str, cuda: Cuda | None, emulate: str
) -> None:
    """Bring the library in ``folder`` up to date."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "build.ninja"
    script.write_text(ninja_file(SOURCES, compiler, torch, folder, sanitize=sanitize, cuda=cuda, emulate=emulate))
    done = subprocess.run(
        [*find_ninja(), "-f", str(script)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(done.stdout, end="", flush=True)
    if done.returncode:
        error = next(
            (line for line in done.stdout.splitlines() if re.search("error *:|fatal +:", line)), "see its output"
        )
        raise CannotBuildError(f"compilation failed: {error}")


class BuildLibrary(build_ext):
    """``build_ext`` that leaves the work to ninja and reports in place of failing."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def run(self) -> None:
        mode, sanitize = os.environ.get("AIM_FAST_BUILD", "auto"), os.environ.get("AIM_FAST_SANITIZE", "")
        emulate = os.environ.get("AIM_FAST_EMULATE", "")
        isa = emulate == EMULATE_ISA
        folder = Path("build", "sanitize" if sanitize else "isa" if isa else "emulated" if emulate else "native")
        info: dict[str, object] = {"built": False, "reason": None, "torch": None, "compiler": None, "seconds": None}
        info["cuda"] = None
        try:
            if mode not in ("auto", "none", "require"):
                raise SystemExit(f"AIM_FAST_BUILD is {mode!r}; expected auto, none or require")
            if mode == "none":
                raise CannotBuildError("AIM_FAST_BUILD=none was set at install; unset it and install again")
            compiler, info["compiler"] = find_compiler()
            torch, info["torch"] = find_torch()
            cuda, left_out = None, "not built with sanitizers"
            try:
                cuda = find_cuda(emulate=bool(emulate)) if not sanitize and not isa else None
            except CannotBuildError as error:
                left_out = str(error)
                if emulate:
                    raise
            start = time.perf_counter()
            compile_for = partial(compile_library, compiler, torch, folder, sanitize=sanitize, emulate=emulate)
            try:
                compile_for(cuda=cuda)
            except CannotBuildError as error:
                if not cuda or emulate or mode == "require":
                    raise
                # What nvcc cannot compile must not take the CPU's kernels with it.
                cuda, left_out = None, f"{error}; mend that and install again"
                print(f"aim_fast: building without the CUDA kernels: {error}", file=sys.stderr)
                compile_for(cuda=None)
            info["cuda"] = f"compiled for {cuda.names}" if cuda else f"left out: {left_out}"
            info |= {"built": True, "seconds": round(time.perf_counter() - start, 1)}
        except CannotBuildError as error:
            if mode == "require":
                raise SystemExit(f"aim_fast: {error}") from None
            info["reason"] = str(error)
            print(f"aim_fast: installing without the compiled kernels, everything runs eager: {error}", file=sys.stderr)
        if not sanitize and not emulate:
            self.deliver(folder / LIBRARY if info["built"] else None, info)

    def deliver(self, library: Path | None, info: dict[str, object]) -> None:
        """Put the library, or none, and the report into the package."""
        package = Path("." if self.inplace else self.build_lib, "aim_fast")
        package.mkdir(parents=True, exist_ok=True)
        (package / "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")
        target = package / LIBRARY
        if library is None:
            target.unlink(missing_ok=True)
        elif not target.exists() or target.read_bytes() != library.read_bytes():
            # Replaced, never written over: a running process may have the old one mapped.
            shutil.copy2(library, target.with_suffix(".new"))
            target.with_suffix(".new").replace(target)


class PlatformWheel(bdist_wheel):
    """A wheel for this platform and any Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("aim_fast.libaim_fast", sources=SOURCES, depends=HEADERS)],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
