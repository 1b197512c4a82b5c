"""Memory of one call, counted rather than sampled: what is kept for the backward, and the peak."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from harness import Inputs, Rival, Step, Workload, step

MIB = 2.0**20


def saved_bytes(workload: Workload, inputs: Inputs, rival: Rival) -> int:
    """Bytes that autograd keeps between forward and backward, x included, the weights not.

    Distinct storages seen by `saved_tensors_hooks`. x counts although the caller made it: without the adapter nobody
    need hold it. A copy of a weight in another dtype counts, the weight itself does not.
    """
    weights = {t.untyped_storage().data_ptr() for t in (inputs.w1, inputs.b1, inputs.w2, inputs.b2)}
    # The tensors are held here so that no two storages share an address.
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), workload.autocast():
        y = rival(*inputs.arguments)
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    del y
    return sum(size for address, size in sizes.items() if address not in weights)


def peak_bytes(workload: Workload, inputs: Inputs, rival: Rival, kind: str) -> int:
    """Most memory held at once by one call beyond its inputs: results, what is kept, temporaries.

    Replays the profiler's record of torch's CPU allocator, so it is exact and the same at every run; scratch that a
    library takes by itself is not in it (a few hundred KiB a thread for the fused kernel). For "backward" the forward
    that it belongs to counts too.
    """
    return peak_of(step(workload, inputs, rival, "forward" if kind == "forward" else "train"))


def peak_of(one: Step) -> int:
    """Most memory that one run takes from torch's CPU allocator at once."""
    # The profiler's own log lines would break into the table; the library reads this when it first starts.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    state = one.prepare()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = one.run(state)
    del result
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        peak = max(peak, held)
    return peak


def needed_bytes(workload: Workload) -> int:
    """An upper estimate for checking and timing a workload, with eager's temporaries and the float64 chunk."""
    case = workload.case
    wide = workload.tensor_dtype.itemsize
    tensors = case.M * (9 * case.D + 5 * case.H) * wide
    chunk = min(case.M, 4096) * (8 * case.D + 6 * case.H) * 8
    return tensors + chunk


def available_bytes() -> int | None:
    """Memory that can be had without swapping, or None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None
