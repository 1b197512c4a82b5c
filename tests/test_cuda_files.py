"""The test files about one family's CUDA kernels, each in a process whose library holds the emulated kernels."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import emulation

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["test_cuda_ampere", "test_cuda_columns"])
def test_file(emulated_library: None, name: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:benchmark", "-p", "no:cacheprovider", f"tests/{name}.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment | emulation.ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert re.search(r"\d+ passed in", done.stdout), done.stdout[-1000:]  # and none skipped
