"""What each kernel takes of a GPU, by the counters that Nsight Compute reads: a stage of gpu_check.py.

python benchmarks/gpu_counters.py BACKEND      what is profiled: a forward and a train step of aim_b_32f in bf16
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from gpu_machine import Machine, python
from gpu_outcome import Outcome, each_kernel, forced, judged

# Column of the report -> the counter; that of the tensor cores has had two names.
COUNTERS = {
    "us": ("gpu__time_duration.sum",),
    "% of DRAM": ("dram__throughput.avg.pct_of_peak_sustained_elapsed",),
    "% of L2": ("lts__throughput.avg.pct_of_peak_sustained_elapsed",),
    "% of tensor cores": (
        "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed",
        "sm__pipe_tensor_op_hmma_cycles_active.avg.pct_of_peak_sustained_elapsed",
    ),
}
_NS = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3}
CASE = "aim_b_32f"


def kernel_rows(backend: str, output: str) -> list[dict[str, Any]]:
    """A row per kernel in the order of their runs, from what `ncu --csv` prints, a line per kernel and counter."""
    lines = output.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    columns = {counter: column for column, counters in COUNTERS.items() for counter in counters}
    found: dict[str, dict[str, Any]] = {}
    for line in csv.DictReader(lines[start:]):
        if column := columns.get(line.get("Metric Name") or ""):
            row = found.setdefault(line["ID"], {"backend": backend, "kernel": short(line["Kernel Name"])})
            factor = _NS.get(line["Metric Unit"], 1.0) if column == "us" else 1.0
            row[column] = float(line["Metric Value"].replace(",", "")) * factor
    return list(found.values())


def short(kernel: str) -> str:
    """ "void aim_fast::cuda::hopper::rows_kernel<...>(...)" -> "hopper::rows_kernel"."""
    name = re.split(r"[<(]", re.sub(r"(<unnamed>|\(anonymous namespace\))::", "", kernel))[0].split()[-1]
    return name.removeprefix("aim_fast::cuda::")


def stage(machine: Machine, seconds: float) -> Outcome:
    """Each backend's kernels, profiled; left out where counters cannot be read, which often takes a privilege."""
    if machine.ncu is None:
        return Outcome("left out", "ncu (Nsight Compute) is not on this machine")
    rows: list[dict[str, Any]] = []

    def profile(backend: str, limit: float) -> Outcome:
        done = None
        for which in range(len(COUNTERS["% of tensor cores"])):
            counters = ",".join(names[min(which, len(names) - 1)] for names in COUNTERS.values())
            prefix = [str(machine.ncu), "--csv", "--profile-from-start", "off", "--metrics", counters]
            done = python(["benchmarks/gpu_counters.py", backend], limit / 2, forced(machine, backend), prefix)
            if "Failed to find metric" not in done.output:
                break
        assert done
        mine = kernel_rows(backend, done.output)
        if not mine and not done.late:
            said = [line for line in done.output.splitlines() if "==ERROR==" in line]
            return Outcome("left out", f"ncu does not run here: {said[0] if said else done.last_line}")
        rows.extend(mine)
        return judged(done, False, f"{len(mine)} kernels")

    outcome = each_kernel(machine, seconds, profile)
    return Outcome(outcome.status, outcome.text, results={"kernels": rows})


def main(argv: Sequence[str]) -> int:
    import torch

    import aim_fast
    import harness

    (workload,) = harness.select([CASE], ["bf16"], "cuda")
    inputs = harness.build(workload)
    with aim_fast.use_backend(argv[0]):
        steps = [harness.step(workload, inputs, harness.fused(workload.case), kind) for kind in ("forward", "train")]
        for one in steps:  # what is compiled when first called
            one.run(one.prepare())
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        for one in steps:
            one.run(one.prepare())
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
    return 0


def table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The cells of the report: a line per kernel."""
    return [
        [row["backend"], row["kernel"], *(f"{row[column]:.0f}" if column in row else "-" for column in COUNTERS)]
        for row in rows
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
