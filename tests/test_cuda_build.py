"""Every CUDA kernel as it was compiled: what does not spill, what multiplies on the tensor cores, what is generated."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cubins
import ninja_file

ROOT = Path(__file__).parent.parent
OBJECTS = cubins.objects_of(ROOT / "build/native")
INFO = ROOT / "aim_fast/_build_info.json"


def _missing() -> None:
    """No CUDA part was built here: says why; where everything has to be tested, in CI, that is a failure."""
    why = json.loads(INFO.read_text())["cuda"] if INFO.exists() else "nothing is built"
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no object of nvcc to look at: {why}")


@pytest.fixture(scope="module")
def nvcc() -> str:
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")
    found = shutil.which("nvcc") or shutil.which("nvcc", path=str(toolkit))
    if not found:
        _missing()
    assert found
    return found


@pytest.mark.parametrize("target", OBJECTS or [None], ids=lambda path: str(path and path.with_suffix("").name))
def test_kernels_as_compiled(target: Path | None) -> None:
    if target is None:
        _missing()
        return
    log = (ROOT / f"{target}.log").read_text()
    wanted = next((names for family, names in cubins.INSTRUCTIONS.items() if family in target.parts), None)
    for kernel in cubins.kernels_of(log):
        print(f"{target.relative_to('build/native')}: {kernel}")
    assert not cubins.problems(ROOT / target, log, wanted)


def test_every_instance_is_there() -> None:
    """Each generated file is compiled, and holds a kernel for every architecture of its family."""
    if not OBJECTS:
        _missing()
    sources = {path.relative_to(ROOT / "csrc") for path in (ROOT / "csrc/cuda").glob("*/instances/*.cu")}
    built = {target.relative_to("build/native").with_suffix(".cu") for target in OBJECTS}
    every = {f"sm_{arch}" for arch in json.loads(INFO.read_text())["cuda"].removeprefix("compiled for ").split(",")}
    for family, archs in {"ampere": every, "hopper": every & {"sm_90a"}}.items():
        for path in [path for path in sources if family in path.parts and archs]:
            assert path in built
            log = (ROOT / "build/native" / path.with_suffix(".o.log")).read_text()
            assert {kernel.arch for kernel in cubins.kernels_of(log)} == archs, path


SPILLS = """
__global__ void spills(float* p) {
  float values[64];
  for (int i = 0; i < 64; ++i) values[i] = p[i * blockDim.x];
  __syncthreads();
  for (int i = 0; i < 64; ++i) p[(63 - i) * blockDim.x] = values[i] * values[63 - i];
}
"""
STACK = """
__global__ void stack(float* p, int n) {
  float values[64];
  for (int i = 0; i < 64; ++i) values[i] = p[i];
  for (int i = 0; i < 64; ++i) values[(i * n) & 63] += values[i];
  p[0] = values[n & 63];
}
"""
PLAIN = "__global__ void plain(float* p) { p[threadIdx.x] += 1; }\n"


@pytest.mark.parametrize(
    ("source", "flags", "words"),
    [
        (SPILLS, ["-maxrregcount=24"], "bytes spilled"),
        (STACK, [], "bytes of stack"),
        (PLAIN, [], "plain.* for sm_80: no HMMA"),
    ],
    ids=["spills", "stack", "no_tensor_cores"],
)
def test_a_bad_kernel_is_found(nvcc: str, tmp_path: Path, source: str, flags: list[str], words: str) -> None:
    (tmp_path / "bad.cu").write_text(source)
    target = tmp_path / "bad.o"
    command = [nvcc, *ninja_file.NVCC_FLAGS.split(), "-gencode=arch=compute_80,code=sm_80", *flags]
    done = subprocess.run([*command, "-c", str(tmp_path / "bad.cu"), "-o", str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AssertionError, match=words):
        assert not cubins.problems(target, done.stdout + done.stderr, cubins.INSTRUCTIONS["ampere"])
    if source is not PLAIN:
        return
    assert not cubins.problems(target, done.stdout + done.stderr)


def test_warnings_are_found() -> None:
    said = "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to ..."
    assert cubins.warnings_of(f"a line\n{said}\n") == [said.partition(": ")[2]]


def test_generated_files_are_fresh() -> None:
    command = [sys.executable, "csrc/cuda/generate.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
