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
    for name, text in TINY.items():
        (tree / "csrc" / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / "csrc" / name).write_text(text)
    return tree


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
    done = python(tree, "setup.py", "-q", "sdist")
    assert done.returncode == 0, done.stderr
    (archive,) = (tree / "dist").iterdir()
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {f"csrc/{name}" for name in TINY} <= names
    assert {"setup.py", "pyproject.toml", "LICENSE", "aim_fast/py.typed", "kernels/tiling.py"} <= names
