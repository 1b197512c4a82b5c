"""The CUDA kernels on a GPU beside the same kernels emulated on the CPU: equal bits, and errors against float64.

    AIM_FAST_TEST_DEVICE=cuda python tests/beside_emulated.py record FILE
    AIM_FAST_LIBRARY=build/emulated/libaim_fast.so python tests/beside_emulated.py compare FILE

record runs every plan that the device has over a few calls and keeps the results; compare runs the same plans emulated,
with as many multiprocessors, and prints a line for each: the share of elements with the same bits, and the largest
errors. Tensor cores sum in an order of their own, so that shares below one are no fault; an error beyond the budget is.
Exit status of compare: 0; 1 when one was.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import aim_fast
from aim_fast import nvidia
from aim_fast.reference import composition
from aim_fast.testing import budget
from judge import DEVICE, Tensors, evaluate, exact, make_inputs

# Shapes that every family takes, (M, D, H): one ragged tile, and several with a full last one.
SHAPES = ((61, 128, 64), (256, 192, 128))
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

Results = dict[str, Tensor]


def call(M: int, D: int, H: int, dtype: torch.dtype) -> tuple[Tensors, Tensor, dict[str, Any]]:
    """The tensors of a call with every term, the gradient of y, and the options."""
    tensors = make_inputs((M, D), H, dtype)
    generator = torch.Generator().manual_seed(1)
    tensors["residual"], dy = (torch.randn(M, D, generator=generator).to(dtype) for _ in range(2))
    tensors["row_scale"] = torch.rand(M, generator=generator)
    return tensors, dy, {"skip": True, "scale": 0.5}


def run(plan: str, M: int, D: int, H: int, dtype: torch.dtype) -> Results:
    """y and every gradient by one plan of the CUDA kernels."""
    tensors, dy, options = call(M, D, H, dtype)
    torch.ops.aim_fast.cuda_choose_kernels(plan)
    try:
        with aim_fast.use_backend("cuda"):
            return evaluate(aim_fast.adapter, tensors, dy, **options)
    finally:
        torch.ops.aim_fast.cuda_choose_kernels("")


def plans(index: int, D: int, H: int, dtype: torch.dtype) -> list[str]:
    """Those of both directions; where one has fewer, its rule takes the place of the rest."""
    found = [plan for backward in (False, True) for plan in nvidia.cuda_plans(index, D, H, dtype, backward)]
    return list(dict.fromkeys(found))


def record(file: Path) -> None:
    index = torch.empty(0, device=DEVICE).get_device()
    keys = [(plan, *shape, dtype) for shape in SHAPES for dtype in DTYPES for plan in plans(index, *shape[1:], dtype)]
    if not keys:
        raise SystemExit(f"the CUDA kernels have no plan on this device: {nvidia.cuda_archs() or 'none is built'}")
    torch.save({"sms": nvidia.gpu(index).sms, "results": {key: run(*key) for key in keys}}, file)
    print(f"{len(keys)} calls")


def imitate(sms: int) -> None:
    """Let the emulated GPU have so many multiprocessors: sums are then split as on the device."""
    torch.ops.aim_fast.cuda_emulate(0, 0, sms)


@dataclass(frozen=True)
class Compared:
    """share: of the elements with the same bits. errors: the largest, by side. wrong: what is beyond the budget."""

    share: float
    errors: dict[str, float]
    wrong: list[str]

    def __str__(self) -> str:
        errors = ", ".join(f"{side} {error:.1e}" for side, error in self.errors.items())
        beyond = f"; beyond the budget: {', '.join(self.wrong)}" if self.wrong else ""
        return f"{self.share:.2%} of the elements equal, error {errors}{beyond}"


def compared(sides: Mapping[str, Results], shape: tuple[int, int, int], dtype: torch.dtype) -> Compared:
    """Two sides' results of one call, beside each other and beside the truth."""
    tensors, dy, options = call(*shape, dtype)
    eager, truth = evaluate(composition, tensors, dy, **options), exact(tensors, dy, **options)
    errors, wrong = dict.fromkeys(sides, 0.0), []
    for (name, t), (side, found) in itertools.product(truth.items(), sides.items()):
        judged = budget(found[name], eager[name], t)
        errors[side] = max(errors[side], judged.error / (t.abs().max().item() or 1.0))
        wrong += [] if judged.ok else [f"{name} of {side}"]
    first, second = sides.values()
    equal = sum(int((first[name] == second[name]).sum()) for name in truth)
    return Compared(equal / sum(t.numel() for t in truth.values()), errors, wrong)


def compare(file: Path, within: float) -> int:
    start = time.monotonic()
    recorded = torch.load(file)
    imitate(recorded["sms"])
    found: list[Compared] = []
    for key, real in recorded["results"].items():
        if time.monotonic() - start > within:
            break
        plan, *shape, dtype = key
        found.append(compared({"device": real, "emulated": run(*key)}, tuple(shape), dtype))
        print(f"{'FAILED ' * bool(found[-1].wrong)}{plan} {tuple(shape)} {dtype}: {found[-1]}", flush=True)
    failed, left = sum(bool(one.wrong) for one in found), len(recorded["results"]) - len(found)
    shares = [one.share for one in found] or [0.0]
    late = f", {left} not begun for want of time" if left else ""
    print(
        f"{len(found)} calls compared, {failed} failed, {min(shares):.1%} to {max(shares):.1%} of elements equal{late}"
    )
    return int(failed > 0)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--within", type=float, default=float("inf"), metavar="SECONDS", help="begin none after that")
    options = parser.parse_args(argv)
    if options.what == "compare":
        return compare(options.file, options.within)
    record(options.file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
