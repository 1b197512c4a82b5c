"""The parts of the benchmark: turns, cold inputs, sampled rows, least work, roof, memory, host cost. No timings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

import accuracy
import devices
import harness
import host_cost
import memory
import report
import roof
from aim_fast.device_clock import Step
from cases import Case
from harness import Workload


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


def test_slow_calls_make_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rival that takes seconds a call would otherwise leave no time for the other workloads."""
    steps = {name: [Step(lambda: None, lambda _: torch.ones(9).sum())] for name in "ab"}
    monkeypatch.setattr(harness, "PATIENCE", 0.0)
    assert [len(times) for times in harness.interleave(steps, 0.0).values()] == [2, 2]


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


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch) -> int:
    """A cache of this many bytes on the CPU's row."""
    size = 1_000_000
    monkeypatch.setitem(devices.DEVICES, "cpu", replace(devices.DEVICES["cpu"], cache_bytes=lambda: size))
    return size


@pytest.mark.parametrize(
    ("case", "read"),
    [
        (Case("few", 7, 256, 64, ("fp32",), True, ""), 4 * (7 * 256 + 2 * 256 * 64 + 256 + 64)),
        (Case("strided", 640, 64, 16, ("fp32",), False, "", residual=True, strided=True), 4 * (2 * 640 * 64 + 2128)),
    ],
    ids=lambda value: value.name if isinstance(value, Case) else "",
)
def test_the_other_sets_pass_over_the_cache_twice(cached: int, case: Case, read: int) -> None:
    inputs = harness.build(Workload(case, "fp32"))
    sets = harness.rotation(Workload(case, "fp32"), inputs)
    assert inputs.read_bytes == read
    assert (len(sets) - 1) * read >= 2 * cached > (len(sets) - 2) * read
    addresses = {t.data_ptr() for one in sets for t in one.arguments if t is not None}
    assert len(addresses) == len(sets) * sum(t is not None for t in inputs.arguments)
    for one in sets[1:]:
        assert list(one.differentiable) == list(inputs.differentiable)
        for copy, t in zip((*one.arguments, one.dy), (*inputs.arguments, inputs.dy), strict=True):
            assert (copy is None) == (t is None)
            if copy is not None and t is not None:
                assert copy.stride() == t.stride()
                assert torch.equal(copy, t)


def test_one_set_where_the_cache_is_left_to_chance() -> None:
    workload = Workload(Case("few", 7, 64, 16, ("fp32",), True, ""), "fp32")
    inputs = harness.build(workload)
    assert harness.rotation(workload, inputs) == [inputs]


def test_sets_take_turns_across_rivals() -> None:
    order: list[tuple[str, int]] = []

    def steps(name: str) -> list[Step]:
        return [Step(lambda: None, lambda _, i=i: order.append((name, i))) for i in range(3)]  # type: ignore[misc]

    harness.interleave({"a": steps("a"), "b": steps("b")}, 0.0)
    turns = [i for _, i in order[4:]]
    assert turns == [i % 3 for i in range(len(turns))]
    assert {name for name, _ in order} == {"a", "b"}


def off_by_a_thousandth(trained: host_cost.Trained) -> host_cost.Trained:
    call, wrt = trained
    return (lambda: call() * 1.001), wrt


def test_host_cost_compares_like_with_like() -> None:
    for make in host_cost.FORMS.values():
        pair = make(64, 16, "cpu")
        host_cost.agree(pair)
        for trained in pair.values():
            no_grad, graph, train = (host_cost.of_pass(trained, kind)() for kind in host_cost.PASSES)
            assert isinstance(no_grad, torch.Tensor)
            assert isinstance(graph, torch.Tensor)
            assert isinstance(train, tuple)
            assert (no_grad.requires_grad, graph.requires_grad) == (False, True)
            assert [g.shape for g in train] == [(1, 64), (16, 64), (16,), (64, 16), (64,)]
        with pytest.raises(ValueError, match="fused and eager differ"):
            host_cost.agree(pair | {"fused": off_by_a_thousandth(pair["fused"])})


def test_host_cost_waits_round_each_burst() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in ("a", "b")}
    times = host_cost.turns(calls, 0.0, lambda: order.append("|"))
    bursts = "".join(order[2:]).strip("|").split("|")
    assert {len(figures) for figures in times.values()} == {host_cost.MIN_ROUNDS}
    assert [burst for burst in bursts if burst] == [name * host_cost.BURST for name in "abbaabbaab"]


def test_host_table() -> None:
    text = report.host_table([{"D": 768, "H": 192, "form": "module", "pass": "train", "us": {"fused": 5, "eager": 10}}])
    assert text.splitlines()[2] == "| 768, 192 | module | train | 5.0 | 10.0 | 2.00 |"
