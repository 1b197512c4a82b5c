"""Compiles the Triton kernels for GPUs that are not there, and reads what came out of it."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What multiplies on the tensor cores in the PTX of a GPU family, which ptxas carries out as HMMA, HGMMA and UTCHMMA.
# Tiles of fewer than 64 rows have the first one on every GPU.
TENSOR_CORES = {80: "mma.sync.aligned", 90: "wgmma.mma_async", 100: "tcgen05.mma"}


@dataclass(frozen=True)
class Compiled:
    """What a kernel takes of the machine, and how it multiplies."""

    registers: int
    local: int  # bytes of stack and local memory a thread: not 0 if and only if registers are spilled
    shared: int  # bytes
    tmem: int  # columns of tensor memory
    products: int  # instructions of the family's tensor cores
    small_products: int  # mma.sync
    undefined: str  # what `undefined_read` finds, on the family 90 alone

    def __str__(self) -> str:
        return (
            f"{self.registers:3} registers, {self.local} B local, {self.shared} B shared, {self.tmem} columns, "
            f"{self.products} products, {self.small_products} mma.sync"
        )


def kernel_type(value: object) -> str:
    """Triton's name for the type of an argument; tensors are given by their dtype."""
    import torch

    pointers = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
    if isinstance(value, torch.dtype):
        return pointers[value]
    return {int: "i32", float: "fp32"}[type(value)]


@functools.cache
def tool(name: str) -> Path:
    """ "cuobjdump" or "nvdisasm": Triton's own, or that on the PATH."""
    from triton.backends.nvidia import driver

    own = Path(driver.__file__).parent / "bin" / name
    found = own if own.exists() else shutil.which(name)
    if not found:
        raise FileNotFoundError(f"{name} is neither in Triton's wheel nor on the PATH")
    return Path(found)


_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\S+)\s*(.*?)\s*;")
_UNIFORM = re.compile(r"\bUR(\d+)\b")


def undefined_read(sass: str) -> str:
    """The first instruction of a kernel for sm_90 that reads a uniform register which none before has written, if any.

    ptxas has made such code of correct PTX. The code is looked at as it lies: a loop does not mislead, since what its
    first turn reads has to be written before.
    """
    written: set[int] = set()
    for operation, text in _INSTRUCTION.findall(sass):
        first, _, rest = text.partition(",")
        result = re.fullmatch(r"UR(\d+)", first.strip())
        reads = [int(number) for number in _UNIFORM.findall(rest if result else text)]
        if described := re.search(r"gdesc\[UR(\d+)\]", text):
            # Four registers, of which the first two describe an operand that may be in registers.
            in_registers = len(re.findall(r"\bR\d+\b", text[: described.start()])) > 1
            reads = [int(described[1]) + i for i in range(2 if in_registers else 0, 4)]
        if any(number not in written for number in reads):
            return f"{operation} {text}"
        if result:
            wide = re.search(r"\.64|\.WIDE", operation) is not None
            written |= {int(result[1]) + i for i in range(1 + wide)}
    return ""


def compile_ahead(kernel: Any, arguments: Mapping[str, object], family: int, warps: int, stages: int) -> Compiled:
    """Compile `kernel` for the GPU family 80, 90 or 100.

    arguments: for each parameter of the kernel a dtype for a pointer, an int or a float for a number of that type, and
    the value itself for a constexpr; a pointer that is None is left out.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    constants = {names[p.num] for p in kernel.params if p.is_constexpr} | {n for n in names if arguments[n] is None}
    signature = {n: "constexpr" if n in constants else kernel_type(arguments[n]) for n in names}
    # Pointers and strides are multiples of 16 where speed matters, and the launch says so to the compiler.
    multiples = ("*",) if arguments["H"] % 2 else ("*", "stride")  # type: ignore[operator]
    aligned = [i for i, n in enumerate(names) if signature[n].startswith(multiples) or n.startswith(multiples)]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(n),): arguments[n] for n in constants},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned if names[i] not in constants},
    )
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", family, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(tool("cuobjdump")), "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        disassemble = [str(tool("nvdisasm")), "-c", file.name]
        sass = subprocess.run(disassemble, capture_output=True, text=True, check=True).stdout if family == 90 else ""
    used = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    tmem = getattr(compiled.metadata, "tmem_size", 0) or 0
    products, small = (compiled.asm["ptx"].count(TENSOR_CORES[f]) for f in (family, 80))
    return Compiled(
        used["REG"],
        used["STACK"] + used["LOCAL"],
        compiled.metadata.shared,
        tmem,
        products,
        small,
        undefined_read(sass),
    )
