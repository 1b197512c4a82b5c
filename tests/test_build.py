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
    (tree / "aim_fast/measured").mkdir(exist_ok=True)
    (tree / "aim_fast/measured/tune-some-gpu.json").touch()
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
    files |= {"aim_fast/measured/tune-some-gpu.json"}
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
    assert "aim_fast/measured/tune-some-gpu.json" in names
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
    """It is looked for in CUDA_HOME, on the PATH and where it usually lies; without it the rest is built."""
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
    assert "no nvcc with headers and libraries; install the CUDA toolkit" in info(tree)["cuda"]
    assert answer(tree) == "42"


@pytest.mark.parametrize("archs", ["8", "75", "sm_80", "80;90a", "90x"])
def test_unknown_architecture_fails(tree: Path, archs: str) -> None:
    done = build(tree, AIM_FAST_CUDA_ARCHS=archs)
    assert done.returncode != 0
    assert f"AIM_FAST_CUDA_ARCHS has {archs!r}; expected numbers from 80 on, as in 80,90a" in done.stderr
