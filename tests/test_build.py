"""setup.py in a copy of the tree: what it builds, what it does when it cannot, and what the user is told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import ninja_file
from ninja_file import Cuda

ROOT = Path(__file__).parent.parent
NO_NETWORK = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "-q")
# Compiles in no time, and depends on a header.
TINY = {
    "common/answer.h": "#define ANSWER 42\n",
    "tiny.cpp": '#include "common/answer.h"\n'
    'extern "C" __attribute__((visibility("default"))) int answer() { return ANSWER; }\n',
}
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what a build reads, with a small csrc of its own."""
    tree = tmp_path / "a tree"
    shutil.copytree(
        ROOT / "aim_fast", tree / "aim_fast", ignore=shutil.ignore_patterns("*.so", "*.json", "__pycache__")
    )
    shutil.copytree(ROOT / "kernels", tree / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    (tree / "README.md").touch()
    for name, text in TINY.items():
        (tree / "csrc" / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / "csrc" / name).write_text(text)
    shutil.copy(ROOT / "csrc/ninja_file.py", tree / "csrc")
    return tree


def toolkit(folder: Path, script: str) -> str:
    """What CUDA_HOME may be: a toolkit without its compiler, in whose place is a script."""
    for name in ("bin/nvcc", "include/cuda_runtime.h", "lib64/libcudart_static.a"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "bin/nvcc").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin/nvcc").chmod(0o755)
    return str(folder)


def python(tree: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run this Python in `tree`, with no variables of the build but those given."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("AIM_FAST_", "CXX", "PYTHONPATH"))
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=tree, env=clean | variables, capture_output=True, text=True, timeout=120)


def build(tree: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return python(tree, "setup.py", "-q", "build_ext", "--inplace", **variables)


def answer(tree: Path) -> str:
    """What the library's function returns, in a process of its own: this one could not load a second version."""
    program = "import ctypes, torch; print(ctypes.CDLL('aim_fast/libaim_fast.so').answer())"
    return python(tree, "-c", program).stdout.strip()


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        pytest.param({"AIM_FAST_BUILD": "none"}, "AIM_FAST_BUILD=none was set at install; unset it", id="none"),
        pytest.param({"CXX": "/nonexistent"}, "/nonexistent is not there); install g++ or set CXX", id="no compiler"),
        pytest.param({"PYTHONPATH": "old"}, "torch is 2.9.1+cpu; the compiled", id="old torch", marks=needs_compiler),
        pytest.param({"CXXFLAGS": "-include none.h"}, "fatal error: none.h", id="compile error", marks=needs_compiler),
    ],
)
def test_goes_on_without_library(tree: Path, variables: dict[str, str], told: str) -> None:
    """The build succeeds, says why there is no library, and leaves no older one behind."""
    (tree / "old/torch").mkdir(parents=True)
    (tree / "old/torch/__init__.py").touch()
    (tree / "old/torch/version.py").write_text("__version__ = '2.9.1+cpu'\n")
    library = tree / "aim_fast/libaim_fast.so"
    library.touch()

    done = build(tree, **variables)
    assert done.returncode == 0, done.stderr
    assert told in done.stderr
    info = json.loads((tree / "aim_fast/_build_info.json").read_text())
    assert info["built"] is False
    assert told in info["reason"]
    assert not library.exists()


def test_installed_without_library(tree: Path) -> None:
    done = python(tree, "-m", "pip", "install", *NO_NETWORK, "--target", "site", ".", CXX="/nonexistent")
    assert done.returncode == 0, done.stderr
    assert not (tree / "site/aim_fast/libaim_fast.so").exists()
    report = python(tree / "site", "-m", "aim_fast")
    assert report.returncode == 0, report.stderr
    assert "no C++ compiler (/nonexistent is not there); install g++ or set CXX" in report.stdout


def test_require_fails(tree: Path) -> None:
    done = build(tree, AIM_FAST_BUILD="require", CXX="/nonexistent")
    assert done.returncode != 0
    assert "/nonexistent is not there" in done.stderr


def test_unknown_mode_fails(tree: Path) -> None:
    done = build(tree, AIM_FAST_BUILD="nothing")
    assert done.returncode != 0
    assert "AIM_FAST_BUILD is 'nothing'; expected auto, none or require" in done.stderr


@needs_compiler
def test_wheel(tree: Path) -> None:
    """No Python ABI in its name, the library inside; and no stale one once the build is turned off."""

    def contents(mode: str) -> set[str]:
        done = python(tree, "-m", "pip", "wheel", *NO_NETWORK, "-w", mode, ".", AIM_FAST_BUILD=mode)
        assert done.returncode == 0, done.stderr
        (wheel,) = (tree / mode).iterdir()
        assert wheel.name.startswith("aim_fast-")
        assert "-py3-none-" in wheel.name
        assert not wheel.name.endswith("-any.whl")
        return set(zipfile.ZipFile(wheel).namelist())

    files = {"aim_fast/__init__.py", "aim_fast/py.typed", "aim_fast/_build_info.json", "aim_fast/kernels/blocks.py"}
    with_library = contents("require")
    assert files | {"aim_fast/libaim_fast.so"} <= with_library
    assert contents("none") == with_library - {"aim_fast/libaim_fast.so"}


@needs_compiler
def test_rebuilds_what_changed(tree: Path) -> None:
    library = tree / "aim_fast/libaim_fast.so"
    assert build(tree, AIM_FAST_BUILD="require").returncode == 0
    assert answer(tree) == "42"
    before = library.stat().st_mtime_ns

    again = build(tree, AIM_FAST_BUILD="require")
    assert "tiny.cpp" not in again.stdout
    assert library.stat().st_mtime_ns == before

    (tree / "csrc/common/answer.h").write_text("#define ANSWER 43\n")
    assert build(tree, AIM_FAST_BUILD="require").returncode == 0
    assert answer(tree) == "43"

    (tree / "csrc/more.cpp").write_text('extern "C" int none();\n')
    assert "more.cpp" in build(tree, AIM_FAST_BUILD="require").stdout


@needs_compiler
def test_sanitized_library_is_apart(tree: Path) -> None:
    done = build(tree, AIM_FAST_BUILD="require", AIM_FAST_SANITIZE="undefined")
    assert done.returncode == 0, done.stderr
    assert (tree / "build/sanitize/libaim_fast.so").exists()
    assert not (tree / "aim_fast/libaim_fast.so").exists()


def test_source_archive_has_the_sources(tree: Path) -> None:
    more = {"csrc/cuda/generate.py", "csrc/cuda/rows.h", "csrc/cuda/sum.cu", "csrc/cuda/hopper/instances/a.cu"}
    for name in more:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    done = python(tree, "setup.py", "-q", "sdist")
    assert done.returncode == 0, done.stderr
    (archive,) = (tree / "dist").iterdir()
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {f"csrc/{name}" for name in TINY} | set(more) <= names
    assert "csrc/ninja_file.py" in names
    assert {"setup.py", "pyproject.toml", "LICENSE", "aim_fast/py.typed", "kernels/tiling.py"} <= names


@needs_compiler
def test_builds_from_a_source_archive(tree: Path) -> None:
    """What is unpacked builds, in an isolated process that does not search the current folder."""
    assert python(tree, "setup.py", "-q", "sdist").returncode == 0
    (archive,) = (tree / "dist").iterdir()
    done = python(tree, "-m", "pip", "wheel", *NO_NETWORK, "-w", "out", str(archive), AIM_FAST_BUILD="require")
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tree / "out").iterdir()
    assert "aim_fast/libaim_fast.so" in zipfile.ZipFile(wheel).namelist()


def info(tree: Path) -> dict[str, str]:
    return json.loads((tree / "aim_fast/_build_info.json").read_text())


@needs_compiler
@pytest.mark.parametrize(
    ("archs", "script", "told"),
    [
        ("80", "echo 'tiny.cu(3): error: no such thing'; exit 1", "tiny.cu(3): error: no such thing"),
        ("80", "echo 'ptxas fatal   : too many registers'; exit 1", "ptxas fatal   : too many registers"),
        ("", "exit 1", "AIM_FAST_CUDA_ARCHS is empty; unset it and install again"),
    ],
    ids=["nvcc", "ptxas", "no_archs"],
)
def test_without_cuda_the_cpu_has_its_kernels(tree: Path, archs: str, script: str, told: str) -> None:
    """An nvcc that fails takes only the CUDA kernels with it; `require` does not let that pass."""
    (tree / "csrc/cuda").mkdir()
    (tree / "csrc/cuda/tiny.cu").write_text("int none();\n")
    variables = {"CUDA_HOME": toolkit(tree / "a toolkit", script), "AIM_FAST_CUDA_ARCHS": archs}
    done = build(tree, **variables, AIM_FAST_BUILD="auto")
    assert done.returncode == 0, done.stderr
    assert answer(tree) == "42"
    assert info(tree)["built"] is True
    assert info(tree)["cuda"].startswith("left out: ")
    assert told in info(tree)["cuda"]
    if archs:
        done = build(tree, **variables, AIM_FAST_BUILD="require")
        assert done.returncode != 0
        assert told in done.stderr


@needs_compiler
def test_without_nvcc(tree: Path) -> None:
    """It is looked for in CUDA_HOME, on the PATH and where it usually lies; without it the rest is built all the same."""
    if Path("/usr/local/cuda/bin/nvcc").exists():
        moved = (tree / "setup.py").read_text().replace("/usr/local/cuda", "/nonexistent")
        (tree / "setup.py").write_text(moved)
    programs = tree / "programs"
    programs.mkdir()
    for name in ("c++", "as", "ld", "sh", "ninja"):
        if found := shutil.which(name):
            (programs / name).symlink_to(found)
    done = build(tree, AIM_FAST_BUILD="require", PATH=str(programs), CUDA_HOME="/nonexistent", CXX="c++")
    assert done.returncode == 0, done.stderr
    assert "no nvcc with its headers and libraries; install the CUDA toolkit" in info(tree)["cuda"]
    assert answer(tree) == "42"


@pytest.mark.parametrize("archs", ["8", "75", "sm_80", "80;90a", "90x"])
def test_unknown_architecture_fails(tree: Path, archs: str) -> None:
    done = build(tree, AIM_FAST_CUDA_ARCHS=archs)
    assert done.returncode != 0
    assert f"AIM_FAST_CUDA_ARCHS has {archs!r}; expected numbers from 80 on, as in 80,90a" in done.stderr


CUDA_SOURCES = ("csrc/binding.cpp", "csrc/binding_cuda.cpp", "csrc/cpu/kernels.cpp", "csrc/cuda/kernels.cpp")
CUDA_SOURCES += ("csrc/cuda/ampere/instances/a.cu", "csrc/cuda/hopper/kernels.cu", "csrc/cuda/sum.cu")


def edges(archs: str | None, *, emulate: bool = False) -> tuple[dict[str, str], str]:
    """Of build.ninja for these architectures: by source how it is compiled, with its own options; and the whole text."""
    cuda = None if archs is None else Cuda(Path("/c/bin/nvcc"), Path("/c/include"), Path("/c/lib64"), archs.split(","))
    text = ninja_file.ninja_file(
        CUDA_SOURCES, ["g++"], Path("/torch"), Path("out"), sanitize="", cuda=cuda, emulate=emulate
    )
    lines = text.splitlines()
    found = [
        (line.split(), lines[i + 1]) for i, line in enumerate(lines) if line.startswith("build ") and " csrc" in line
    ]
    return {words[-1]: f"{words[2]} {extra.partition('=')[2].strip()}" for words, extra in found}, text


SM80, SM90A, SM100 = (f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ("80", "90a", "100"))
PTX80, PTX90 = (f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in ("80", "90"))


@pytest.mark.parametrize(
    ("archs", "ampere", "hopper"),
    [
        ("80,90a", f"{SM80} {SM90A} {PTX80}", SM90A),
        ("80,90a,100", f"{SM80} {SM90A} {SM100} {PTX80}", SM90A),
        ("90a", f"{SM90A} {PTX90}", SM90A),
        ("80", f"{SM80} {PTX80}", None),
    ],
)
def test_what_is_compiled_for_what(archs: str, ampere: str, hopper: str | None) -> None:
    """The hopper part for sm_90a alone, the others for the whole list and PTX of the lowest; and the list is known."""
    found, text = edges(archs)
    assert found["csrc/cuda/ampere/instances/a.cu"] == found["csrc/cuda/sum.cu"] == f"compile_cuda {ampere}"
    assert found.get("csrc/cuda/hopper/kernels.cu") == (f"compile_cuda {hopper}" if hopper else None)
    assert found["csrc/cuda/kernels.cpp"].split()[0] == "compile"
    flags = [line for line in text.splitlines() if line.startswith(("flags", "nvcc_flags"))]
    assert all(f"""'-DAIM_FAST_CUDA_ARCHS="{archs}"'""" in line for line in flags)
    link = next(line for line in text.splitlines() if "cudart_static" in line)
    assert "-lcudart " not in link  # the shared one would have to be there when the library is loaded
    assert ("out/cuda/hopper/kernels.o" in text.splitlines()[-1]) is (hopper is not None)


def test_sources_without_cuda_and_emulated() -> None:
    without, text = edges(None)
    assert set(without) == {"csrc/binding.cpp", "csrc/cpu/kernels.cpp"}
    assert "cudart" not in text
    emulated, text = edges("80", emulate=True)
    assert set(emulated) == {source for source in CUDA_SOURCES if "cuda" in source}
    assert emulated["csrc/cuda/hopper/kernels.cu"] == "compile -x c++"
    assert "-DAIM_FAST_EMULATED" in text
    assert "cudart" not in text


@needs_compiler
@pytest.mark.parametrize(("archs", "needs_hopper"), [("80,90a", True), ("80", False)])
def test_hopper_part_may_be_missing(tmp_path: Path, archs: str, needs_hopper: bool) -> None:
    """Nothing refers to its table when the list has no 90a, so the library links without it."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))
    flags = [*ninja_file.COMMON_FLAGS.split(), "-O1", "-Icsrc", f'-DAIM_FAST_CUDA_ARCHS="{archs}"']
    target = tmp_path / "kernels.o"
    subprocess.run([compiler, *flags, "-c", "csrc/cuda/kernels.cpp", "-o", str(target)], cwd=ROOT, check=True)
    symbols = target.read_bytes()
    assert b"ampere_kernels" in symbols
    assert (b"hopper_kernels" in symbols) is needs_hopper
