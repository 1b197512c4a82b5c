"""What a figure depends on besides the code under test: machine, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

import aim_fast


@cache
def provenance() -> dict[str, Any]:
    """The fields `machine`, `versions` and `commit` that every row of a result file carries."""
    return {
        "machine": {"cpu": _cpu_model(), "cores": os.cpu_count(), "isa": _isa()},
        "versions": {"torch": torch.__version__, "aim_fast": aim_fast.__version__, "python": platform.python_version()},
        "commit": _commit(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _isa() -> str | None:
    """The instruction set that the fused kernel runs, None without the compiled library."""
    return torch.ops.aim_fast.cpu_isa() if hasattr(torch.ops.aim_fast, "cpu_isa") else None


def _commit() -> dict[str, Any]:
    """Hash of the checkout and whether it has changes; the hash is None outside a git checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        return {"hash": commit, "dirty": bool(_git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"hash": None, "dirty": None}


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()
