"""Memory of one call, counted rather than sampled: what is kept for the backward, and the peak."""

from __future__ import annotations

import torch
from torch import Tensor

from devices import DEVICES
from harness import FLUSHES, Inputs, Rival, Workload, step

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

    For "backward" the forward that it belongs to counts too.
    """
    one = step(workload, inputs, rival, "forward" if kind == "forward" else "train")
    return DEVICES[workload.device].peak_bytes(one)


def needed_bytes(workload: Workload) -> int:
    """An upper estimate for checking and timing a workload, with eager's temporaries and the float64 chunk."""
    case = workload.case
    wide = workload.tensor_dtype.itemsize
    tensors = case.M * (9 * case.D + 5 * case.H) * wide
    chunk = min(case.M, 4096) * (8 * case.D + 6 * case.H) * 8
    return tensors + chunk + FLUSHES * DEVICES[workload.device].cache_bytes()


def available_bytes(device: str) -> int | None:
    """Memory that can be had, or None where the system does not tell."""
    return DEVICES[device].free_bytes()
