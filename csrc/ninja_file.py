"""The text of build.ninja: how csrc/ becomes the library. A pure function; setup.py finds what it needs and runs ninja.

csrc/cpu/, binding*.cpp, ...     the C++ compiler
csrc/cuda/**/*.cu                nvcc, for every architecture of the list, and PTX of the lowest for GPUs to come
csrc/cuda/hopper/**/*.cu         nvcc, for sm_90a alone; left out, by AIM_FAST_CUDA_ARCHS in csrc/cuda/device.h, when
                                 the list has no 90a: a call then goes to ampere's kernels
emulated                         nothing but the CUDA part, all of it by the C++ compiler, to run on the CPU
emulated, "isa"                  nothing of the CUDA part; AVX-512 and AMX played by what AVX2 has
"""

from __future__ import annotations

import os
import platform
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

LIBRARY = "libaim_fast.so"
HOPPER = "90a"
EMULATE_ISA = "isa"

# gcc 12 warns of its own AVX-512 headers otherwise.
WARNINGS = "-Wall -Wextra -Werror=return-type -Wno-maybe-uninitialized -Wno-unknown-warning-option"
# NaN and inf go through the kernels as in eager, so nothing of -ffast-math that assumes them away.
COMMON_FLAGS = f"-std=c++20 -fPIC -fvisibility=hidden {WARNINGS} -fno-math-errno -fno-trapping-math"
RELEASE_FLAGS = "-O3"
# gcc's own intrinsics look uninitialised to it at -O1.
QUIET = "-Wno-uninitialized -Wno-maybe-uninitialized"
SANITIZE_FLAGS = f"-g -O1 -fno-omit-frame-pointer -fno-sanitize-recover=undefined {QUIET}"
# The emulator reads shared memory as several types.
EMULATED_FLAGS = "-O2 -march=native -fno-strict-aliasing -DAIM_FAST_EMULATED -Itests/emulator -w"
# The warning is about variables in CUDA's own headers. What ptxas says of registers and spills is kept for the tests.
NVCC_FLAGS = (
    "-O3 -std=c++20 --expt-relaxed-constexpr -diag-suppress 177 -Xptxas -v -Xcompiler -fPIC,-fvisibility=hidden"
)

AVX512 = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c"
# File stem in csrc/cpu -> flags of its instruction set; these files are for x86 only. All others take no extra flags.
X86_FLAGS = {
    "isa_avx2": "-mavx2 -mfma -mf16c",
    "isa_avx512": AVX512,
    "isa_avx512_bf16": f"{AVX512} -mavx512bf16",
    "isa_amx": f"{AVX512} -mavx512bf16",  # the tiles' instructions are spelled out: gcc 10 has no flag for them
}
# The same for a library of emulated instruction sets: headers of tests/emulator stand in for the instructions.
_TWINS = "-w -Wno-psabi -mavx2 -mfma -mf16c -DAIM_FAST_EMULATED -Itests/emulator -include tests/emulator"
EMULATED_X86_FLAGS = {
    "isa_avx512": f"{_TWINS}/avx512.h",
    "isa_avx512_bf16": f"{_TWINS}/avx512_bf16.h",
    "isa_amx": f"{_TWINS}/avx512_bf16.h",
    "kernels": "-DAIM_FAST_EMULATED",
}
EMULATED_ISA_FLAGS = "-O1 -fexpensive-optimizations"  # quick to compile, yet with fused multiply-adds


_OF_COMPILING = ["  depfile = $out.d", "  deps = gcc", "  description = $in"]


class Cuda(NamedTuple):
    """The CUDA toolkit: its nvcc, its headers, the folder of its static runtime; and what to compile for, sorted."""

    nvcc: Path
    include: Path
    lib: Path
    archs: Sequence[str]

    @property
    def names(self) -> str:
        """ "80,90a"."""
        return ",".join(self.archs)


def number(arch: str) -> int:
    """90 of "90a"."""
    return int(re.sub(r"\D", "", arch))


def gencode(source: Path, archs: Sequence[str]) -> str:
    """nvcc's options for what a file is compiled for; empty if for nothing in the list."""
    if "hopper" in source.parts:
        archs, ptx = [arch for arch in archs if arch == HOPPER], []
    else:
        ptx = [f"-gencode=arch=compute_{n},code=compute_{n}" for n in [number(archs[0])]]
    return " ".join([*(f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs), *ptx])


def ninja_file(
    sources: Sequence[str],
    compiler: Sequence[str],
    torch: Path,
    folder: Path,
    *,
    sanitize: str = "",
    cuda: Cuda | None = None,
    emulate: str = "",
) -> str:
    """Rules to compile and to link, and an edge per source file.

    torch, folder: of torch, and where objects and library go. sanitize: sanitizers for -fsanitize. cuda: None leaves
    the CUDA part out. emulate: "isa"; or, with the headers of cuda, "1" or a word without which in its name an instance
    that was compiled before is left as it is.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    flags = f"{COMMON_FLAGS} {SANITIZE_FLAGS} -fsanitize={sanitize}" if sanitize else f"{COMMON_FLAGS} {RELEASE_FLAGS}"
    flags += f" {os.environ.get('CXXFLAGS', '')} -Icsrc"
    # Only the bindings know torch. The macro hides what torch 2.10 does not have yet; USE_CUDA declares what gives the
    # current stream, and needs no CUDA.
    torch_flags = f"-isystem {shlex.quote(f'{torch}/include')} -DTORCH_TARGET_VERSION=0x020a000000000000 -DUSE_CUDA"
    # No rpath: the symbols come from the torch that is already loaded when the library is. --no-as-needed keeps them.
    link = shlex.join([f"-L{torch}/lib", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10"])
    link += f" -fsanitize={sanitize}" if sanitize else " -Wl,--no-undefined"
    archs = shlex.quote(f'-DAIM_FAST_CUDA_ARCHS="{cuda.names}"') if cuda else ""
    rules = [
        ("compile", "$cxx $flags $extra -MMD -MF $out.d -c $in -o $out"),
        ("link", f"$cxx -shared $in -o $out {link}"),
    ]
    nvcc_flags = ""
    if emulate and cuda:
        flags += f" {EMULATED_FLAGS} -isystem {shlex.quote(str(cuda.include))}"
    elif cuda:
        host = f"-ccbin {shlex.quote(compiler[0])}" if len(compiler) == 1 else ""
        nvcc_flags = f"{NVCC_FLAGS} {host} {archs} -Icsrc"
        flags += f" {archs}"
        nvcc = shlex.quote(str(cuda.nvcc))
        command = f"{nvcc} $nvcc_flags $extra -MD -MF $out.d -c $in -o $out"
        rules.append(("compile_cuda", f"{command} > $out.log 2>&1 || (cat $out.log; false)"))
        # The static runtime needs no driver to be there when the library is loaded.
        static = f" -L{shlex.quote(str(cuda.lib))} -lcudart_static -lrt -ldl -lpthread"
        rules[1] = ("link", rules[1][1] + static)
    lines = [f"builddir = {folder}", f"cxx = {shlex.join(compiler)}", f"flags = {flags}", f"nvcc_flags = {nvcc_flags}"]
    for name, command in rules:
        lines += [f"rule {name}", f"  command = {command}"]
        lines += ["  description = $out"] if name == "link" else _OF_COMPILING
    objects = []
    for source in map(Path, sources):
        of_cuda = "cuda" in source.parts or source.stem == "binding_cuda"
        left_out = not cuda if of_cuda else emulate not in ("", EMULATE_ISA)
        if left_out or (source.stem in X86_FLAGS and not x86):
            continue
        rule, extra = "compile", X86_FLAGS.get(source.stem, "")
        if emulate == EMULATE_ISA:
            extra = f"{EMULATED_ISA_FLAGS} {EMULATED_X86_FLAGS.get(source.stem, extra)}"
        if source.stem.startswith("binding"):
            extra = torch_flags
        elif source.suffix == ".cu" and emulate:
            extra = "-x c++"
        elif source.suffix == ".cu" and cuda:
            rule, extra = "compile_cuda", gencode(source, cuda.archs)
            if not extra:
                continue
        objects.append(str(folder / source.relative_to("csrc").with_suffix(".o")))
        left = emulate not in ("", "1") and source.parent.name == "instances" and emulate not in source.stem
        if left and Path(objects[-1]).exists():
            continue
        lines += [f"build {objects[-1]}: {rule} {source}", f"  extra = {extra}"]
    lines += [f"build {folder / LIBRARY}: link {' '.join(objects)}", ""]
    return "\n".join(lines)
