"""The parts of the benchmark: turns, sampled rows, least work, roof and memory counts. No timings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

import accuracy
import harness
import memory
import roof
from cases import Case
from harness import Step, Workload


def test_rows_compared_reach_both_ends() -> None:
    rows = accuracy._sample(100_000)
    assert len(rows) == len(rows.unique()) == accuracy.SAMPLE_ROWS
    assert {0, 1, 99_998, 99_999} <= set(rows.tolist())
    assert 40_000 < rows.float().mean() < 60_000
    assert accuracy._sample(7).tolist() == list(range(7))


def test_rivals_take_turns() -> None:
    order: list[str] = []

    def note(name: str) -> Step:
        ticks: Iterator[int] = itertools.count()

        def run(state: int) -> None:
            assert state == next(ticks), "run takes what prepare gave"
            order.append(name)
            torch.ones(1 << 16).sum().item()

        prepared = itertools.count()
        return Step(lambda: next(prepared), run)

    times = harness.interleave({"a": [note("a")], "b": [note("b")]}, 0.0)
    assert {name: len(values) for name, values in times.items()} == {"a": harness.MIN_ROUNDS, "b": harness.MIN_ROUNDS}
    turns = "".join(name for name, _ in itertools.groupby(order[4:]))
    assert turns == "abababababab"[: len(turns)]
    assert order[4:].count("a") == order[4:].count("b")


@pytest.mark.parametrize(
    ("kind", "bytes_a_row", "mflop_a_row"), [("forward", 3072, 0.59), ("backward", 4992, 1.18), ("train", 8448, 1.77)]
)
def test_least_work_is_the_designs(kind: str, bytes_a_row: int, mflop_a_row: float) -> None:
    less, more = (roof.work(Workload(Case("b", M, 768, 192, ("half",), True, ""), "bf16"), kind) for M in (1000, 2000))
    assert (more.bytes - less.bytes) / 1000 == bytes_a_row
    assert round(less.flops / 1000 / 1e6, 2) == mflop_a_row


def test_roof_is_the_slower_limit() -> None:
    limits = roof.Roof(gflops=100.0, gbps=10.0, source="")
    assert limits.seconds(roof.Work(flops=1e9, bytes=1.0)) == 0.01
    assert limits.seconds(roof.Work(flops=1.0, bytes=1e9)) == 0.1


def test_memory_counts_what_eager_holds() -> None:
    case = Case("small", 300, 64, 16, ("fp32",), True, "")
    workload = Workload(case, "fp32")
    inputs, eager = harness.build(workload), harness.eager(case)
    x, z = 300 * 64 * 4, 300 * 16 * 4
    assert memory.saved_bytes(workload, inputs, eager) == x + 2 * z  # x, z and the hidden activation
    # The branch and y; the hidden activation is gone by then.
    assert memory.peak_bytes(workload, inputs, eager, "forward") == 2 * x
    half = Workload(case, "bf16", amp=True)
    weights = 2 * 64 * 16 * 2  # w1 and w2 as copies in bf16
    assert memory.saved_bytes(half, harness.build(half), eager) == (x + 2 * z) // 2 + weights
