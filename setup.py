"""The compiled kernels; everything else about the package is in pyproject.toml.

csrc/ becomes one shared library, aim_fast/libaim_fast.so, compiled by ninja. It uses torch's stable ABI and no Python
ABI, so one wheel (py3-none-PLATFORM) serves every Python >= 3.10 and every torch >= 2.10.

An install never fails for lack of a compiler or of torch: the package then runs eager, and aim_fast/_build_info.json,
which `python -m aim_fast` shows, says why.

    AIM_FAST_BUILD=auto       build if possible (the default)
    AIM_FAST_BUILD=none       build nothing
    AIM_FAST_BUILD=require    fail if the library cannot be built
    AIM_FAST_SANITIZE=address,undefined    build build/sanitize/libaim_fast.so instead, for `make sanitize`
    AIM_FAST_EMULATE=1        build build/emulated/libaim_fast.so instead, whose CUDA kernels run on the CPU, for tests
    AIM_FAST_CUDA_ARCHS       what nvcc compiles for, by default 80,90a; empty for no CUDA kernels
    CUDA_HOME                 where nvcc is; else the one on the PATH, else /usr/local/cuda
    CXX, CXXFLAGS             the C++ compiler and more flags for it
"""

import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

LIBRARY = "libaim_fast.so"
TORCH_NEEDED = (2, 10)
SOURCES = sorted(str(path) for suffix in ("cpp", "cu") for path in Path("csrc").glob(f"**/*.{suffix}"))
HEADERS = sorted(str(path) for path in Path("csrc").glob("**/*.h"))
CUDA_ARCHS = "80,90a"

# gcc 12 warns of its own AVX-512 headers otherwise.
WARNINGS = "-Wall -Wextra -Werror=return-type -Wno-maybe-uninitialized -Wno-unknown-warning-option"
# NaN and inf go through the kernels as in eager, so nothing of -ffast-math that assumes them away.
COMMON_FLAGS = f"-std=c++20 -fPIC -fvisibility=hidden {WARNINGS} -fno-math-errno -fno-trapping-math"
RELEASE_FLAGS = "-O3"
# gcc's own intrinsics look uninitialised to it at -O1.
QUIET = "-Wno-uninitialized -Wno-maybe-uninitialized"
SANITIZE_FLAGS = f"-g -O1 -fno-omit-frame-pointer -fno-sanitize-recover=undefined {QUIET}"

AVX512 = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c"
# File stem in csrc/cpu -> flags of its instruction set; these files are for x86 only. All others take no extra flags.
X86_FLAGS = {
    "isa_avx2": "-mavx2 -mfma -mf16c",
    "isa_avx512": AVX512,
    "isa_avx512_bf16": f"{AVX512} -mavx512bf16",
}


# The warning is about variables in CUDA's own headers.
NVCC_FLAGS = (
    "-O3 -std=c++20 --expt-relaxed-constexpr -diag-suppress 177 -Xptxas -v -Xcompiler -fPIC,-fvisibility=hidden"
)
# The emulator reads shared memory as several types.
EMULATED_FLAGS = "-O2 -march=native -fno-strict-aliasing -DAIM_FAST_EMULATED -Itests/emulator -w"


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


def find_cuda() -> tuple[Path, list[str]]:
    """The folder of the CUDA toolkit, and what to compile for."""
    archs = [arch for arch in os.environ.get("AIM_FAST_CUDA_ARCHS", CUDA_ARCHS).split(",") if arch]
    if wrong := [arch for arch in archs if not re.fullmatch(r"\d{2,3}[af]?", arch)]:
        raise SystemExit(f"AIM_FAST_CUDA_ARCHS has {wrong[0]!r}; expected numbers as in {CUDA_ARCHS}")
    if not archs:
        raise CannotBuildError("AIM_FAST_CUDA_ARCHS is empty; unset it and install again")
    nvcc = shutil.which("nvcc")
    folders = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parent.parent, "/usr/local/cuda"]
    for folder in filter(None, folders):
        if Path(folder, "bin/nvcc").exists() and Path(folder, "include/cuda_runtime.h").exists():
            return Path(folder), archs
    raise CannotBuildError("no nvcc; install the CUDA toolkit or set CUDA_HOME, then install again")


def find_ninja() -> list[str]:
    """The command of ninja, from its pip package or the system."""
    if importlib.util.find_spec("ninja"):
        return [sys.executable, "-m", "ninja"]
    if path := shutil.which("ninja"):
        return [path]
    raise CannotBuildError("ninja is not installed; pip install ninja")


def ninja_file(
    compiler: list[str], torch: Path, folder: Path, sanitize: str, cuda: tuple[Path, list[str]] | None
) -> str:
    """The text of build.ninja: rules to compile and to link, an edge per source file. Without cuda the kernels run
    emulated if the build is for that, or are left out."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    # Only the bindings know torch. The macro hides what torch 2.10 does not have yet.
    torch_flags = shlex.join(["-isystem", f"{torch}/include", "-DTORCH_TARGET_VERSION=0x020a000000000000"])
    torch_flags += " -DUSE_CUDA"  # declares what gives the current stream; needs no CUDA
    flags = f"{COMMON_FLAGS} {SANITIZE_FLAGS} -fsanitize={sanitize}" if sanitize else f"{COMMON_FLAGS} {RELEASE_FLAGS}"
    emulated = bool(os.environ.get("AIM_FAST_EMULATE"))
    # No rpath: the symbols come from the torch that is already loaded when the library is. --no-as-needed keeps them.
    link = shlex.join([f"-L{torch}/lib", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10"])
    link += f" -fsanitize={sanitize}" if sanitize else " -Wl,--no-undefined"
    lines = [
        f"builddir = {folder}",
        f"cxx = {shlex.join(compiler)}",
        f"flags = {flags} {os.environ.get('CXXFLAGS', '')} -Icsrc",
        f"torch_flags = {torch_flags}",
        "rule compile",
        "  command = $cxx $flags $extra -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = $in",
    ]
    if emulated:
        assert cuda
        include = shlex.quote(f"{cuda[0]}/include")
        lines[2] += f" {EMULATED_FLAGS} -isystem {include}"  # of everything: the CPU's own kernels are not in it
    elif cuda:
        codes = " ".join(f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in cuda[1])
        # The static runtime needs no driver to be loaded. What ptxas says is kept for the tests.
        link += f" -L{shlex.quote(str(cuda[0] / 'lib64'))} -lcudart_static -lrt -ldl -lpthread"
        lines += [
            f"nvcc = {shlex.quote(str(cuda[0] / 'bin/nvcc'))} -ccbin {shlex.quote(compiler[0])}",
            f"nvcc_flags = {NVCC_FLAGS} {codes} -Icsrc",
            "rule compile_cuda",
            "  command = $nvcc $nvcc_flags -MD -MF $out.d -c $in -o $out > $out.log 2>&1 || (cat $out.log; false)",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = $in",
        ]
    lines += ["rule link", f"  command = $cxx -shared $in -o $out {link}", "  description = $out"]
    objects = []
    for source in map(Path, SOURCES):
        if source.stem in X86_FLAGS and not x86:
            continue
        of_cuda = "cuda" in source.parts or source.stem == "binding_cuda"
        if (of_cuda and not cuda) or (emulated and not of_cuda):
            continue
        objects.append(f"{folder / source.relative_to('csrc').with_suffix('.o')}")
        if source.suffix == ".cu" and not emulated:
            lines.append(f"build {objects[-1]}: compile_cuda {source}")
            continue
        extra = "$torch_flags" if source.stem.startswith("binding") else X86_FLAGS.get(source.stem, "")
        extra = "-x c++" if source.suffix == ".cu" else extra
        lines += [f"build {objects[-1]}: compile {source}", f"  extra = {extra}"]
    lines += [f"build {folder / LIBRARY}: link {' '.join(objects)}", ""]
    return "\n".join(lines)


def compile_library(
    compiler: list[str], torch: Path, folder: Path, sanitize: str, cuda: tuple[Path, list[str]] | None
) -> None:
    """Bring the library in ``folder`` up to date."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "build.ninja"
    script.write_text(ninja_file(compiler, torch, folder, sanitize, cuda))
    done = subprocess.run(
        [*find_ninja(), "-f", str(script)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(done.stdout, end="", flush=True)
    if done.returncode:
        error = next((line for line in done.stdout.splitlines() if "error:" in line), "see the compiler's output")
        raise CannotBuildError(f"compilation failed: {error}")


class BuildLibrary(build_ext):
    """``build_ext`` that leaves the work to ninja and reports in place of failing."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def run(self) -> None:
        mode, sanitize = os.environ.get("AIM_FAST_BUILD", "auto"), os.environ.get("AIM_FAST_SANITIZE", "")
        emulate = os.environ.get("AIM_FAST_EMULATE", "")
        folder = Path("build", "sanitize" if sanitize else "emulated" if emulate else "native")
        info: dict[str, object] = {"built": False, "reason": None, "torch": None, "compiler": None, "seconds": None}
        info["cuda"] = None
        try:
            if mode not in ("auto", "none", "require"):
                raise SystemExit(f"AIM_FAST_BUILD is {mode!r}; expected auto, none or require")
            if mode == "none":
                raise CannotBuildError("AIM_FAST_BUILD=none was set at install; unset it and install again")
            compiler, info["compiler"] = find_compiler()
            torch, info["torch"] = find_torch()
            cuda = None
            try:
                cuda = find_cuda() if not sanitize else None
                info["cuda"] = f"compiled for sm_{', sm_'.join(cuda[1])}" if cuda else None
            except CannotBuildError as error:
                info["cuda"] = f"left out: {error}"
                if emulate:
                    raise
            start = time.perf_counter()
            compile_library(compiler, torch, folder, sanitize, cuda)
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
