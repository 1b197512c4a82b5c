"""What nvcc has made of the CUDA kernels: reads what ptxas said of each and the instructions that it chose."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ahead import tool

# By the folder of a family, and what is in a kernel's mangled name, what it multiplies and loads with;
# tests/test_cuda_build.py asserts it.
INSTRUCTIONS = {
    "tiles": {r"kernelIf": ("FFMA", "LDGSTS"), r"kernelI\d": ("HMMA", "LDGSTS")},
    "ampere": {"": ("HMMA", "LDGSTS")},
    "hopper": {"": ("HGMMA", "UTMALDG")},
}
# Bytes of shared memory of a block that nvcc lays out itself: more has to be asked for at the launch.
STATIC_SHARED = 48 << 10

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


@dataclass(frozen=True)
class Kernel:
    """One kernel for one architecture, by ptxas: registers and bytes a thread, and of shared memory a block."""

    name: str
    arch: str
    registers: int
    stack: int
    spilled: int
    shared: int

    def __str__(self) -> str:
        return f"{self.arch} {self.registers:3} registers, {self.stack} B stack, {self.shared} B static shared memory"

    def problems(self) -> list[str]:
        found = {"spilled": self.spilled, "of stack": self.stack, "of static shared memory": self.shared}
        limits = {"spilled": 0, "of stack": 0, "of static shared memory": STATIC_SHARED}
        return [f"{value} bytes {what}" for what, value in found.items() if value > limits[what]]


def kernels_of(log: str) -> list[Kernel]:
    """The kernels in what `nvcc -Xptxas -v` said."""
    found = []
    for part in re.split(r"(?=ptxas info\s*: Compiling entry)", log)[1:]:
        entry, stack, used = _ENTRY.search(part), _STACK.search(part), _USED.search(part)
        if not (entry and stack and used):
            raise ValueError(f"ptxas does not say what is expected: {part}")
        stack_bytes, stores, loads = map(int, stack.groups())
        found.append(Kernel(entry[1], entry[2], int(used[1]), stack_bytes, stores + loads, int(used[2] or 0)))
    return found


def warnings_of(log: str) -> list[str]:
    """What ptxas says of performance, such as products that wait for one another."""
    return re.findall(r"\(C75\d\d\).*", log)


def instructions_of(object_file: Path, wanted: Sequence[str]) -> Mapping[tuple[str, str], Counter[str]]:
    """By kernel and architecture how often each of these opcodes is in its code."""
    command = [str(tool("cuobjdump")), "-sass", str(object_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        opcode = re.compile(rf"\b({'|'.join(wanted)})\b")
        found: dict[tuple[str, str], Counter[str]] = {}
        arch, counts = "", Counter[str]()
        for line in process.stdout:
            words = line.split()
            if words[:2] == ["arch", "="]:
                arch = words[2]
            elif words[:2] == ["Function", ":"]:
                counts = found.setdefault((words[2], arch), Counter())
            elif match := opcode.search(line):
                counts[match[1]] += 1
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return found


def problems(object_file: Path, log: str, wanted: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """What is wrong with the kernels of an object: spills, stack, warnings, and instructions that are not there.

    wanted: by a pattern in a kernel's name the instructions that it has; each kernel's name fits one.
    """
    kernels = kernels_of(log)
    found = [f"{kernel.name} for {kernel.arch}: {text}" for kernel in kernels for text in kernel.problems()]
    found += warnings_of(log)
    if kernels and wanted:
        counts = instructions_of(object_file, sorted({name for names in wanted.values() for name in names}))
        for kernel in kernels:
            (names,) = (names for pattern, names in wanted.items() if re.search(pattern, kernel.name))
            absent = [name for name in names if not counts[kernel.name, kernel.arch][name]]
            found += [f"{kernel.name} for {kernel.arch}: no {name}" for name in absent]
    return found


def objects_of(build: Path) -> list[Path]:
    """The objects that nvcc makes in a build, in the order of build.ninja; none where there is no such build."""
    script = build / "build.ninja"
    lines = script.read_text().splitlines() if script.exists() else []
    return [Path(line.split()[1].rstrip(":")) for line in lines if re.match(r"build .*: compile_cuda ", line)]
