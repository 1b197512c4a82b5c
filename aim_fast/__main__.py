"""`python -m aim_fast`: what this installation has, what it lacks, and the remedy; `... tune`: see tune.py."""

from __future__ import annotations

import os
import platform
import sys

import torch

import aim_fast
from aim_fast import nvidia, triton_device, tuning
from aim_fast.available import library_path
from aim_fast.routing import BACKENDS


def measurements(table: tuning.Table, file: str) -> str:
    """Which hold: those of the user's file, or what is shipped in its place; and why a file was ignored."""
    source = file if table.gpu == tuning.HERE else f"shipped, of {table.gpu}"
    state = f"{len(table.rows)} shapes, {source}, {table.date}" if table.rows else "none; python -m aim_fast tune"
    return f"{state}; {table.reason}" if table.reason else state


def report() -> str:
    lines = [
        f"aim_fast {aim_fast.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        f"library: {library_path()} ({'there' if library_path().exists() else 'missing'})",
    ]
    for row in aim_fast.backends():
        lines.append(f"{row.name:8} {'yes' if row.available else 'no '}  {row.reason or row.what}")
    if any(row.name == "cpu" and row.available for row in aim_fast.backends()):
        ops = torch.ops.aim_fast
        lines.append(f"CPU instruction set: {ops.cpu_isa()} (this machine runs {ops.cpu_isas()})")
    if archs := nvidia.cuda_archs():
        lines.append(f"CUDA kernels: {'emulated on the CPU' if nvidia.is_emulated() else f'compiled for {archs}'}")
    if any(row.name in BACKENDS and row.available for row in aim_fast.backends()) and torch.cuda.is_available():
        gpu = triton_device.gpu(torch.cuda.current_device())
        lines.append(f"measurements for {gpu.name}: {measurements(tuning.table(gpu), str(tuning.path(gpu)))}")
    lines.append(f"AIM_FAST_BACKEND: {os.environ.get('AIM_FAST_BACKEND', 'auto')}")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["tune"]:
        from aim_fast import tune

        sys.exit(tune.main(sys.argv[2:]))
    print(report())
