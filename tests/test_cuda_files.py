"""The test files about one family's CUDA kernels, each in a process whose library holds the emulated kernels."""

from __future__ import annotations

import re

import pytest

import emulation


@pytest.mark.parametrize("name", ["test_cuda_ampere", "test_cuda_columns"])
def test_file(emulated_library: None, name: str) -> None:
    printed = emulation.run_pytest(emulation.ENVIRONMENT, f"tests/{name}.py")
    assert re.search(r"\d+ passed in", printed), printed[-1000:]  # and none skipped
