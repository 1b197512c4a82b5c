"""What a figure depends on besides the code under test: machine, versions, commit."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

import aim_fast
from devices import DEVICES


@cache
def provenance(device: str = "cpu") -> dict[str, Any]:
    """The fields `device`, `machine`, `versions` and `commit` that every row of a result file carries."""
    return {
        "device": device,
        "machine": DEVICES["cpu"].facts() | (DEVICES[device].facts() if device != "cpu" else {}),
        "versions": {"torch": torch.__version__, "aim_fast": aim_fast.__version__, "python": platform.python_version()},
        "commit": _commit(),
    }


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
