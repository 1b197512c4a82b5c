"""What a call should take where nobody has measured it, from counted bytes, FLOP and tiles: pure functions.

    kernel = max(DRAM bytes / copy rate, filled * max(L2 bytes / L2 rate, FLOP / product rate)) + gap
    filled = how far the last wave of programs leaves SMs idle
    call   = max(sum of its kernels, host time)

Every figure that follows from this is an estimate, and says so: the rates below are ceilings, some from data sheets,
and the shares of them that kernels reach are assumptions, but for what measured forwards on an H200 gave.
"""

from __future__ import annotations

from typing import NamedTuple

from aim_fast.kernels import tiling
from aim_fast.kernels.tiling import Gpu, Plan


class Rates(NamedTuple):
    """Ceilings of a GPU: bytes a second of a copy and of L2, FLOP a second of products."""

    copy: float
    l2: float
    half: float
    tf32: float
    ieee: float
    source: str


# By a word in the GPU's name, then by its family. Rates of L2 are public microbenchmarks or, failing those, three times
# the copy rate; of H100 and H200 copy and half were measured with torch, and L2's is what makes Triton's forwards on an
# H200 come out; the rest are data sheets.
_MEASURED = "copy, L2 and bf16 measured, the rest data sheet"
_BY_NAME = {
    "H200": Rates(4.2e12, 4.0e12, 800e12, 400e12, 60e12, _MEASURED),
    "H100": Rates(3.0e12, 4.0e12, 800e12, 400e12, 60e12, _MEASURED),
    "A100": Rates(1.5e12, 4.0e12, 312e12, 156e12, 19.5e12, "data sheet"),
}
_BY_FAMILY = {
    80: Rates(0.7e12, 2.1e12, 150e12, 75e12, 30e12, "a guess between the data sheets of its family"),
    90: _BY_NAME["H100"],
    100: Rates(7.0e12, 10e12, 2000e12, 1000e12, 75e12, "data sheet"),
}
# Shares of the product rate that are assumed: of cuBLAS, and of Triton on tensor cores and without them.
CUBLAS, TRITON, TRITON_IEEE = 0.8, 0.7, 0.5
# Share of the copy rate that PyTorch's kernels reach: with it eager's forwards on an H200 come out.
PYTORCH_COPY = 0.8
# Seconds between kernels; of the host for an operation of PyTorch, a Triton launch, and our operator around launches.
GAP, HOST_OP, HOST_LAUNCH, HOST_CALL = 2e-6, 5e-6, 16e-6, 8e-6


class Case(NamedTuple):
    """A call: its load class, bytes an element of x, weights, products and y, and what stands around the branch."""

    M: int
    D: int
    H: int
    load: str
    x: int
    w: int
    compute: int
    y: int
    skip: bool = False
    scaled: bool = False
    residual: bool = False
    x_grad: bool = True


class Work(NamedTuple):
    """Of one kernel: bytes from and to DRAM and L2, FLOP, programs (0 for one of PyTorch, which fills the GPU)."""

    dram: float
    l2: float
    flop: float
    programs: int = 0


def rates(gpu: Gpu) -> Rates:
    """The ceilings of a GPU, by its name or its family."""
    known = [found for word, found in _BY_NAME.items() if word in gpu.name]
    return known[0] if known else _BY_FAMILY[tiling.family(gpu) or 80]


def filled(gpu: Gpu, work: Work) -> float:
    """How much longer a kernel takes because its last wave of programs leaves SMs idle; 1 for one of PyTorch."""
    return -(-work.programs // gpu.sms) * gpu.sms / work.programs if work.programs else 1.0


def limits(gpu: Gpu, case: Case, work: Work) -> tuple[float, float, float]:
    """Seconds of a kernel under each ceiling alone: DRAM, L2 and products, the last two times `filled`."""
    r = rates(gpu)
    product = {"half": r.half, "amp": r.half, "tf32": r.tf32, "ieee": r.ieee}[case.load]
    if not work.programs:
        return work.dram / (r.copy * PYTORCH_COPY), 0.0, work.flop / (product * CUBLAS)
    share = TRITON_IEEE if case.load == "ieee" else TRITON
    over = filled(gpu, work)
    return work.dram / r.copy, over * work.l2 / r.l2, over * work.flop / (product * share)


def seconds(gpu: Gpu, case: Case, work: Work) -> float:
    """Of one kernel, by the formula at the top."""
    return max(limits(gpu, case, work)) + GAP


def fused_forward(case: Case, plan: Plan, *, keep_z: bool) -> list[Work]:
    """The forward kernel: x and the residual in, y and z out; the weights once per program, from L2."""
    M, D, H = case.M, case.D, case.H
    programs = -(-M // plan.tile.block_m) * plan.split
    z = M * H * case.compute if keep_z else 0
    once = M * D * (case.x * (1 + case.residual) + case.y) + z
    again = M * D * case.x * (plan.split - 1 + case.skip)
    weights = D * H * case.w
    product = 2.0 * M * D * H
    l2 = once + again + programs * weights * (1 + 1 / plan.split)
    return [Work(once + 2 * weights, l2, product * (plan.split + 1), programs)]


def fused_backward(case: Case, dx: Plan, dw: Plan) -> list[Work]:
    """K1, K2 and the sum of the partial results, all gradients wanted but perhaps dx."""
    M, D, H = case.M, case.D, case.H
    product, weights, hidden = 2.0 * M * D * H, D * H * case.w, M * H * case.compute
    programs = -(-M // dx.tile.block_m) * dx.split
    once = M * D * (case.y + (case.x if case.x_grad else 0)) + 3 * hidden
    l2 = once + M * D * case.y * dx.split + programs * weights * (1 + case.x_grad / dx.split)
    k1 = Work(once + 2 * weights, l2, product * (dx.split + case.x_grad), programs)
    columns = -(-D // dw.tile.block_d)
    slices = -(-M // tiling.slice_rows(dw, case.load, M))
    partial = 2.0 * slices * D * H * 4
    rows = M * D * (min(case.x, case.compute) + case.y)
    k2 = Work(rows + 2 * hidden + partial, rows + 2 * columns * hidden + partial, 2 * product, 2 * columns * slices)
    total = Work(partial + 2 * weights, partial + 2 * weights, 0, 2 * -(-D // 8))
    return [k1, k2, total]


def eager_forward(case: Case) -> list[Work]:
    """The composition: two products, the activation, and a pass over memory for each thing around them."""
    M, D, H, c = case.M, case.D, case.H, case.compute
    product = 2.0 * M * D * H
    width, hidden, weights = M * D * c, M * H * c, D * H * c
    found = [(width + hidden + weights, product), (2 * hidden, 0), (hidden + width + weights, product)]
    found += [(M * D * (case.x + c), 0)] * (case.x != c) + [(D * H * (case.w + c), 0)] * 2 * (case.w != c)
    found += [(2 * width, 0)] * case.scaled + [(width + M * D * (case.x + case.y), 0)] * (case.skip + case.residual)
    return [Work(moved, moved, flop) for moved, flop in found]


def eager_backward(case: Case) -> list[Work]:
    """The backward of the composition: as many products and sums as there are gradients."""
    M, D, H, c = case.M, case.D, case.H, case.compute
    product = 2.0 * M * D * H
    width, hidden, weights = M * D * c, M * H * c, D * H * c
    found = [(width + hidden + weights, product), (3 * hidden, 0), *[(width + hidden + weights, product)] * 2]
    found += [(hidden, 0), (width, 0)]
    found += [(width + hidden + weights, product), *[(3 * width, 0)] * case.skip] * case.x_grad
    found += [(M * D * (case.x + c), 0)] * (case.x != c) + [(D * H * (case.w + c), 0)] * 2 * (case.w != c)
    found += [(2 * width, 0)] * case.scaled
    return [Work(moved, moved, flop) for moved, flop in found]


class Estimate(NamedTuple):
    """Seconds of a call, fused and eager; fused is inf where no tile serves."""

    fused: float
    eager: float


def best_plan(gpu: Gpu, kernel: str, case: Case) -> Plan | None:
    """The plan that the tiling table puts first for a kernel of this call."""
    # What dw loads is x as it was multiplied, and dy.
    load = "half" if case.load == "amp" and kernel == "dw" and case.y == 2 else case.load
    found = tiling.plans(gpu, kernel, load, case.M, case.D, case.H, 2)
    return found[0] if found else None


def estimate(gpu: Gpu, case: Case, *, train: bool) -> Estimate:
    """Of a forward, or of a forward that keeps z and its backward."""

    def total(kernels: list[Work], host: float) -> float:
        return max(sum(seconds(gpu, case, work) for work in kernels), host)

    eager = total(eager_forward(case), HOST_OP * len(eager_forward(case)))
    if train:
        eager += total(eager_backward(case), HOST_OP * len(eager_backward(case)))
    fwd, dx, dw = (best_plan(gpu, kernel, case) for kernel in tiling.KERNELS)
    if fwd is None or dx is None or dw is None:
        return Estimate(float("inf"), eager)
    fused = total(fused_forward(case, fwd, keep_z=train), HOST_CALL + HOST_LAUNCH)
    if train:
        fused += total(fused_backward(case, dx, dw), HOST_CALL + 3 * HOST_LAUNCH)
    return Estimate(fused, eager)
