"""build.ninja: which file is compiled by what, for which architectures, and what is left out."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import ninja_file
from ninja_file import Cuda

ROOT = Path(__file__).parent.parent
COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
SOURCES = (
    "csrc/binding.cpp",
    "csrc/binding_cuda.cpp",
    "csrc/cpu/kernels.cpp",
    "csrc/cuda/kernels.cpp",
    "csrc/cuda/ampere/instances/a.cu",
    "csrc/cuda/hopper/kernels.cu",
    "csrc/cuda/sum.cu",
)


def edges(archs: str | None, *, emulate: str = "", folder: Path = Path("out")) -> tuple[dict[str, str], str]:
    """Of build.ninja for these architectures: by source its rule and its own options; and the whole text."""
    cuda = None if archs is None else Cuda(Path("/c/bin/nvcc"), Path("/c/include"), Path("/c/lib64"), archs.split(","))
    text = ninja_file.ninja_file(SOURCES, ["g++"], Path("/torch"), folder, cuda=cuda, emulate=emulate)
    lines = text.splitlines()
    compiled = [i for i, line in enumerate(lines) if line.startswith("build ") and " csrc" in line]
    found = [(lines[i].split(), lines[i + 1].partition("=")[2].strip()) for i in compiled]
    return {words[-1]: f"{words[2]} {extra}" for words, extra in found}, text


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


def test_sources_left_out_without_cuda_and_emulated() -> None:
    without, text = edges(None)
    assert set(without) == {"csrc/binding.cpp", "csrc/cpu/kernels.cpp"}
    assert "cudart" not in text
    emulated, text = edges("80", emulate="1")
    assert set(emulated) == {source for source in SOURCES if "cuda" in source}
    assert emulated["csrc/cuda/hopper/kernels.cu"] == "compile -x c++"
    assert "-DAIM_FAST_EMULATED" in text
    assert "cudart" not in text
    of_cpu, _ = edges(None, emulate="isa")
    assert set(of_cpu) == set(without)
    assert [source for source, words in of_cpu.items() if "-DAIM_FAST_EMULATED" in words] == ["csrc/cpu/kernels.cpp"]


def test_instances_left_as_they_are(tmp_path: Path) -> None:
    """One that was compiled before is linked and not compiled, unless the word is in its name."""
    instance = "csrc/cuda/ampere/instances/a.cu"
    assert instance in edges("80", emulate="b", folder=tmp_path)[0]
    compiled = tmp_path / "cuda/ampere/instances/a.o"
    compiled.parent.mkdir(parents=True)
    compiled.touch()
    for word, left in (("b", True), ("a", False), ("1", False)):
        found, text = edges("80", emulate=word, folder=tmp_path)
        assert (instance not in found) is left
        assert str(compiled) in text.splitlines()[-1]
        assert "csrc/cuda/sum.cu" in found


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize(("archs", "needs_hopper"), [("80,90a", True), ("80", False)])
def test_hopper_part_may_be_missing(tmp_path: Path, archs: str, needs_hopper: bool) -> None:
    """Nothing refers to its table when the list has no 90a, so the library links without it."""
    assert COMPILER
    flags = [*ninja_file.COMMON_FLAGS.split(), "-O1", "-Icsrc", f'-DAIM_FAST_CUDA_ARCHS="{archs}"']
    target = tmp_path / "kernels.o"
    subprocess.run([COMPILER, *flags, "-c", "csrc/cuda/kernels.cpp", "-o", str(target)], cwd=ROOT, check=True)
    symbols = target.read_bytes()
    assert b"ampere_kernels" in symbols
    assert (b"hopper_kernels" in symbols) is needs_hopper
