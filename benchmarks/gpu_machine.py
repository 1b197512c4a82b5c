"""The machine and the Python that gpu_check.py runs on, and this checkout on that Python's path.

Nothing here imports torch: what a process of its own tells is as much as is known of it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import limited
from limited import Done

ROOT = Path(__file__).resolve().parent.parent

_LOOK = """
import json, torch
there = torch.cuda.is_available()
print(json.dumps({"torch": torch.__version__, "gpu": torch.cuda.get_device_name() if there else None}))
"""


@dataclass(frozen=True)
class Machine:
    """What a run depends on. gpu: its name, or None. sanitizer, ncu: where these tools are, if they are."""

    torch: str
    gpu: str | None
    pytest: bool
    xdist: bool
    sanitizer: str | None
    ncu: str | None = None

    @property
    def device(self) -> str:
        return "cuda" if self.gpu else "cpu"

    def __str__(self) -> str:
        tools = {"pytest": self.pytest, "compute-sanitizer": self.sanitizer, "ncu": self.ncu}
        absent = [name for name, there in tools.items() if not there]
        return (
            f"{self.gpu or 'no NVIDIA GPU'}, torch {self.torch}, Python {sys.version.split()[0]}"
            f"{', without ' + ', '.join(absent) if absent else ''}"
        )


def python(
    arguments: Sequence[str],
    seconds: float,
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    root: Path = ROOT,
) -> Done:
    """Run this Python on the checkout, which comes before anything installed."""
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    return limited.run(
        [*prefix, sys.executable, *arguments], seconds, root, {"PYTHONPATH": path, **(environment or {})}
    )


def look() -> Machine | None:
    """This machine, or None when its Python has no torch that works."""
    done = python(["-c", _LOOK], 120)
    if done.status:
        return None
    found = json.loads(done.last_line)
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")
    sanitizer, ncu = (
        shutil.which(name) or shutil.which(name, path=str(toolkit)) for name in ("compute-sanitizer", "ncu")
    )
    pytest, xdist = (importlib.util.find_spec(name) is not None for name in ("pytest", "xdist"))
    return Machine(found["torch"], found["gpu"], pytest, xdist, sanitizer, ncu)
