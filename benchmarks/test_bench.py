"""The adapter under pytest-benchmark, fused beside eager, for comparing two states of the code.

pytest benchmarks/test_bench.py --benchmark-autosave                  before a change
pytest benchmarks/test_bench.py --benchmark-compare                   after it
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

import accuracy
import harness
from harness import Rival, Workload, select

WORKLOADS = select(["aim_b_tail", "aim_b_8f_mlp", "swin_s3", "decoder_queries", "one_image"], ["fp32", "bf16"])
RIVALS: dict[str, Callable[..., Rival]] = {"fused": harness.fused, "eager": harness.eager}


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("kind", ["forward", "train"])
@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def test_adapter(benchmark, workload: Workload, kind: str, rival: str) -> None:
    inputs = harness.build(workload)
    call = RIVALS[rival](workload.case)
    errors = accuracy.check(workload, inputs, {rival: call}, harness.eager(workload.case), kind)[rival]
    assert all(error.ok for error in errors), [str(error) for error in errors if not error.ok]
    one = harness.step(workload, inputs, call, kind)
    benchmark.group = f"{workload} {kind}"
    benchmark(one.run, None)
