"""What `make gpu-check` leaves: a day's file that stages add to, and the means that stand in its Markdown."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

import gpu_report
from gpu_machine import Machine
from gpu_stages import Outcome

H100 = Machine("2.11.0+cu130", "NVIDIA H100 80GB HBM3", pytest=True, xdist=False, sanitizer=None)
MINUTES = itertools.count()


def row(name: str, kind: str, saved: dict[str, float] | None = None, **speedup: float) -> dict[str, Any]:
    """As a stage's process measures it: each ratio is one of its own times."""
    return {
        "name": name,
        "dtype": "bf16",
        "amp": False,
        "pass": kind,
        "us": {"fused": {"median": 10.0}} | {rival: {"median": 10.0 * ratio} for rival, ratio in speedup.items()},
        "speedup": speedup,
        "failed": {},
        "saved_mib": saved or {},
        "roof": {"share": 0.5},
        "machine": {"gpu": H100.gpu},
        "versions": {"torch": H100.torch},
        "commit": {"hash": "abc", "dirty": False},
        "date": f"2026-11-27T07:{next(MINUTES):02}:00+00:00",
    }


def stages(**rows: list[dict[str, Any]]) -> dict[str, Outcome]:
    return {name: Outcome("passed", "", 1.0, {"rows": mine}) for name, mine in rows.items()}


def ratios(results: dict[str, Any]) -> list[dict[str, float]]:
    return [line["speedup"] for line in gpu_report.joined(results["rows"])]


def test_each_stage_adds_its_rivals_to_the_table() -> None:
    """As one run of the script makes them; only AIM's are in `forward`."""
    measured = stages(
        workloads=[
            row("aim_a", "forward", eager=2.0, cuda=1.0, triton=1.5),
            row("swin", "forward", eager=3.0, cuda=1.0),
        ],
        compile=[row("aim_a", "forward", eager=1.8, compile=1.6), row("swin", "forward", eager=2.9, compile=2.5)],
        forward=[row("aim_a", "forward", eager=2.1, autotune=1.7)],
    )
    results = gpu_report.merged({}, H100, measured)
    assert ratios(results) == [
        {"eager": 2.0, "compile": 1.6, "autotune": 1.7, "cuda": 1.0, "triton": 1.5},
        {"eager": 3.0, "compile": 2.5, "cuda": 1.0},
    ]
    table = gpu_report.aim_table(gpu_report.joined(results["rows"]))
    assert "| x eager | x compile | x autotune | x cuda | x triton |" in table[0]
    assert "| 2.00 of 1 | 1.60 of 1 | 1.70 of 1 | 1.00 of 1 | 1.50 of 1 |" in table[2]
    # What is kept is as it was measured: no time of one process stands beside those of another.
    for kept in results["rows"]:
        times = {rival: time["median"] / kept["us"]["fused"]["median"] for rival, time in kept["us"].items()}
        assert {"fused": 1.0, **kept["speedup"]} == times


def test_the_line_that_stays_keeps_its_own_ratios() -> None:
    """Of the row with the most rivals, of equals the first; what the others had besides is the latest of theirs."""
    rows = [
        row("a", "train", eager=1.0, cuda=1.1),
        row("a", "train", eager=1.2, compile=1.3),
        row("a", "train", eager=1.4, compile=1.5),
        row("a", "train", eager=1.6),
    ]
    (line,) = gpu_report.joined([rows[0], rows[2], rows[1], rows[3]])
    assert line["speedup"] == {"eager": 1.0, "cuda": 1.1, "compile": 1.5}
    assert line["us"] == rows[0]["us"]


def test_a_rival_that_failed_later_has_no_ratio() -> None:
    rows = [
        row("a", "train", eager=1.0, cuda=1.0),
        row("a", "train", compile=1.3),
        row("a", "train", eager=1.0) | {"failed": {"compile": "wrong"}},
    ]
    (line,) = gpu_report.joined(rows)
    assert (line["speedup"], line["failed"]) == ({"eager": 1.0, "cuda": 1.0}, {"compile": "wrong"})


def test_a_later_run_adds_to_the_day() -> None:
    """A stage's rows take the place of its own, another's stand beside them."""
    first = gpu_report.merged({}, H100, stages(workloads=[row("a", "train", eager=1.0), row("b", "train", eager=1.0)]))
    more = {"rows": [row("b", "train", eager=2.0, compile=1.5)], "host": [{"D": 1}]}
    second = gpu_report.merged(first, H100, {"rivals": Outcome("passed", "", 1.0, more)})
    assert list(second["stages"]) == ["workloads", "rivals"]
    assert ratios(second) == [{"eager": 1.0}, {"eager": 2.0, "compile": 1.5}]
    assert second["host"] == [{"D": 1}]
    third = gpu_report.merged(second, H100, stages(workloads=[row("a", "train", eager=3.0)]))
    assert ratios(third) == [{"eager": 3.0}, {"eager": 2.0, "compile": 1.5}]
    assert len(third["rows"]) == 3


@pytest.mark.parametrize("other", [{"commit": {"hash": "def"}}, {"machine": {"gpu": "NVIDIA H200"}}], ids=str)
def test_ratios_of_other_code_are_not_joined(other: dict[str, Any]) -> None:
    before = row("a", "train", eager=1.0, compile=1.0, cuda=1.0) | other
    assert [line["speedup"] for line in gpu_report.joined([before, row("a", "train", eager=2.0)])] == [{"eager": 2.0}]
    # A checkout that was changed by nothing but an earlier run's results is the same code.
    dirty = before | {"commit": {"hash": "abc", "dirty": True}, "machine": {"gpu": H100.gpu}}
    assert "compile" in gpu_report.joined([dirty, row("a", "train", eager=2.0)])[0]["speedup"]


def test_means_of_aim() -> None:
    saved = {"fused": 8.0, "eager": 10.0}
    rows = [row("aim_a", "train", saved, eager=4.0, autotune=2.0), row("aim_b", "train", saved, eager=1.0)]
    assert gpu_report.aim_table([*rows, row("swin", "train", eager=9.0)])[2:] == [
        "| train | 2 | 2.00 of 2 | 2.00 of 1 | 0.80 | 50% to 50% |"
    ]
