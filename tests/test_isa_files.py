"""The CPU's kernels for instruction sets that this processor lacks, emulated: the tests of each in one process."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import emulation
from conftest import ISAS

NAMES = ("functional", "mixed", "nonfinite", "numerics", "ops", "prepack", "threads")
# Which of their tests: those of the set, without the longest; and those of the best one, which AMX is then.
CHOSEN = {
    "amx": "not avx512 and not avx2 and not portable",
    "avx512_bf16": "avx512_bf16",
    "avx512": "avx512 and not avx512_bf16",
}


@pytest.fixture(scope="session")
def isa_library() -> Path:
    """The library whose kernels for AVX-512 and AMX run on AVX2, up to date."""
    if "avx2" not in ISAS:
        pytest.skip("AVX-512 and AMX are emulated by what AVX2 has, which this processor lacks")
    emulation.build(emulation.ISA_LIBRARY)
    return emulation.ISA_LIBRARY


@pytest.mark.parametrize("isa", CHOSEN)
def test_emulated(cpu_library: None, isa_library: Path, isa: str) -> None:
    if isa in ISAS:
        pytest.skip(f"this processor has {isa}: the same tests run on it")
    environment = {"AIM_FAST_LIBRARY": str(isa_library), "OMP_NUM_THREADS": "1"}
    files = (f"tests/test_{name}.py" for name in NAMES)
    printed = emulation.run_pytest(environment, "-k", f"({CHOSEN[isa]}) and not long", *files)
    assert re.search(r"\d\d\d passed, ", printed), printed[-1000:]
