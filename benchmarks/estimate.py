"""Writes kernels/ESTIMATE.md: what each workload should take on an H100, from counted bytes, FLOP and tiles.

    python benchmarks/estimate.py            write the page
    python benchmarks/estimate.py --check    exit with 1 if the page is not what would be written

No line of it was measured; it is there to be held against the first measurement. The arithmetic is kernels/estimate.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

from aim_fast.kernels import estimate
from aim_fast.kernels.estimate import Case, Work
from aim_fast.kernels.tiling import Gpu
from cases import CASES
from cases import Case as Workload

PAGE = Path(__file__).resolve().parent.parent / "kernels" / "ESTIMATE.md"
H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132)
# What the modes of benchmarks/cases.py mean: load class, and bytes of x, the weights, the products and y.
MODES = {"fp32": ("ieee", 4, 4, 4, 4), "half": ("half", 2, 2, 2, 2), "amp": ("amp", 4, 4, 2, 2)}
HEAD = """# Estimate, not a measurement

The times below are arithmetic for an H100 (132 SMs), written by `python benchmarks/estimate.py` from
`kernels/estimate.py`: bytes from DRAM and, with the weights that every program reads anew, from L2; FLOP; and how far
the last wave of programs fills the GPU. Two of the constants were set after the first forwards on an H200, in bf16:
L2's rate, with which ten of fifteen of Triton's come to 0.97 to 1.05 of what was measured and the others to 0.6 to
1.35; and eager's share of the copy rate, with which thirteen come to 0.8 to 1.02. Train steps took up to 1.55 times
what is said here.

- Ceilings: copy {copy:.1f} TB/s, L2 {l2:.1f} TB/s, {half:.0f} TFLOP/s in bf16, {ieee:.0f} in fp32 ({source}).
- Shares: of the product rate, assumed, cuBLAS {cublas:.0%}, Triton {triton:.0%}, Triton in fp32 {triton_ieee:.0%};
  of the copy rate, PyTorch's kernels {pytorch_copy:.0%}.
- Assumed times: {gap:.0f} us between kernels; on the host {op:.0f} us an operation of PyTorch, {launch:.0f} us a launch
  of Triton.

Tile: rows x columns of D, warps, and spans of columns. DRAM, L2 and product: us of the forward kernel under that
ceiling alone, the last two times `filled`. Eager is estimated in the same way.

| workload | M, D, H | dtype | tile | DRAM | L2 | product | filled | forward us | eager us | x | train | eager | x |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def as_case(workload: Workload, mode: str) -> Case:
    """A workload in the terms of the estimate; with a residual, or fp32 x and skip, y has fp32 under amp."""
    load, x, w, compute, y = MODES[mode]
    wide = mode == "amp" and (workload.residual or workload.skip)
    return Case(
        workload.M,
        workload.D,
        workload.H,
        load,
        x,
        w,
        compute,
        4 if wide else y,
        workload.skip,
        workload.scale != 1.0,
        workload.residual,
        workload.x_grad,
    )


def line(workload: Workload, mode: str, gpu: Gpu = H100) -> str:
    """The row of a workload."""
    case = as_case(workload, mode)
    shape = f"| {workload.name} | {case.M}, {case.D}, {case.H} | {mode} |"
    forward, train = (estimate.estimate(gpu, case, train=train) for train in (False, True))
    plan = estimate.best_plan(gpu, "fwd", case)
    if plan is None:
        eager = f"{forward.eager * 1e6:.0f} | | | {train.eager * 1e6:.0f} | |"
        return f"{shape} none: eager | | | | | | {eager}"
    (work,) = estimate.fused_forward(case, plan, keep_z=False)
    limits = parts_of(gpu, case, work)
    tile = f"{plan.tile.block_m} x {plan.tile.block_d}, {plan.tile.warps}, {plan.split}"
    times = " | ".join(
        f"{found.fused * 1e6:.0f} | {found.eager * 1e6:.0f} | {found.eager / found.fused:.2f}"
        for found in (forward, train)
    )
    return f"{shape} {tile} | {limits} | {times} |"


def parts_of(gpu: Gpu, case: Case, work: Work) -> str:
    """us of a kernel from DRAM, from L2 and for its products, and how far the last wave fills the GPU."""
    dram, l2, product = estimate.limits(gpu, case, work)
    return f"{dram * 1e6:.0f} | {l2 * 1e6:.0f} | {product * 1e6:.0f} | {estimate.filled(gpu, work):.2f}"


def page() -> str:
    """The whole text."""
    r = estimate.rates(H100)
    head = HEAD.format(
        copy=r.copy / 1e12,
        l2=r.l2 / 1e12,
        half=r.half / 1e12,
        ieee=r.ieee / 1e12,
        source=r.source,
        cublas=estimate.CUBLAS,
        triton=estimate.TRITON,
        triton_ieee=estimate.TRITON_IEEE,
        pytorch_copy=estimate.PYTORCH_COPY,
        gap=estimate.GAP * 1e6,
        op=estimate.HOST_OP * 1e6,
        launch=estimate.HOST_LAUNCH * 1e6,
    )
    return head + "".join(f"{line(workload, mode)}\n" for workload in CASES for mode in workload.modes)


def main() -> int:
    if "--check" in sys.argv[1:]:
        return PAGE.read_text() != page()
    PAGE.write_text(page())
    print(f"written to {PAGE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
