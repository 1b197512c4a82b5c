"""What this installation has: the compiled library, its CUDA kernels, Triton; or why not, with the remedy."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
from pathlib import Path

import torch

from aim_fast import nvidia
from aim_fast.triton_device import INTERPRETED

_HERE = Path(__file__).parent


def library_path() -> Path:
    """The compiled library: `AIM_FAST_LIBRARY` if set, else the one that setup.py leaves in the package."""
    return Path(os.environ.get("AIM_FAST_LIBRARY") or _HERE / "libaim_fast.so")


def _built(key: str) -> str:
    """What setup.py has noted about the build, if anything."""
    info = _HERE / "_build_info.json"
    return json.loads(info.read_text()).get(key) or "" if info.exists() else ""


def load_library() -> str:
    """Load the compiled library. Returns why it is not there, with the remedy, or an empty string."""
    if INTERPRETED:
        return "Triton's interpreter has taken its place, since TRITON_INTERPRET=1 is set; unset it"
    path = library_path()
    if not path.exists():
        remedy = "install a C++ compiler and torch >= 2.10, then reinstall aim_fast"
        return f"the compiled library is not built: {_built('reason') or remedy}"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"the compiled library does not load with torch {torch.__version__} ({error}); reinstall aim_fast"
    return ""


def without_cpu() -> str:
    """Why the library that is loaded has no kernels for CPU tensors."""
    if nvidia.is_emulated():
        return f"{library_path()} holds the CUDA kernels, emulated, in their place; unset AIM_FAST_LIBRARY"
    return ""


def without_cuda() -> str:
    """Why the library that is loaded has no CUDA kernels, or none that this torch can run."""
    archs = nvidia.cuda_archs()
    if not archs:
        remedy = "install the CUDA toolkit, then reinstall aim_fast"
        return f"the compiled library has no CUDA kernels: {_built('cuda') or remedy}"
    if archs != "emulated" and torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install a CUDA build of torch"
    return ""


def without_triton() -> str:
    """Why the Triton kernels are not there, with the remedy, or an empty string."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install triton (torch's CUDA builds for Linux bring it)"
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        version = "3.2"  # a build under another name, which came with its torch
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < (3, 2):
        return f"Triton is {version}; pip install 'triton>=3.2'"
    if torch.version.cuda is None and not INTERPRETED:
        return f"torch {torch.__version__} is built without CUDA, which Triton needs; install a CUDA build of torch"
    return ""
