"""What `make gpu-check` leaves: a day's file that stages add to, and the means that stand in its Markdown."""

from __future__ import annotations

from typing import Any

import gpu_report
from gpu_machine import Machine
from gpu_stages import Outcome

H100 = Machine("2.11.0+cu130", "NVIDIA H100 80GB HBM3", pytest=True, xdist=False, sanitizer=None)


def row(name: str, kind: str, saved: dict[str, float] | None = None, **speedup: float) -> dict[str, Any]:
    return {"name": name, "dtype": "bf16", "amp": False, "pass": kind, "speedup": speedup, "saved_mib": saved or {}} | {
        "roof": {"share": 0.5}
    }


def test_a_later_run_adds_to_the_day() -> None:
    first = gpu_report.merged({}, H100, {"build": Outcome("passed", ""), "workloads": Outcome("passed", "", 1.0, {
        "rows": [row("a", "train", eager=1.0), row("b", "train", eager=1.0)]})})  # fmt: skip
    more = {"rows": [row("b", "train", eager=2.0, compile=1.5)], "host": [{"D": 1}]}
    second = gpu_report.merged(first, H100, {"rivals": Outcome("passed", "", 1.0, more)})
    assert list(second["stages"]) == ["build", "workloads", "rivals"]
    assert [r["speedup"] for r in second["rows"]] == [{"eager": 1.0}, {"eager": 2.0, "compile": 1.5}]
    assert second["host"] == [{"D": 1}]
    third = gpu_report.merged(second, H100, {"workloads": Outcome("passed", "", 1.0, {"rows": first["rows"]})})
    assert third["rows"] == second["rows"]


def test_means_of_aim() -> None:
    saved = {"fused": 8.0, "eager": 10.0}
    rows = [row("aim_a", "train", saved, eager=4.0, autotune=2.0), row("aim_b", "train", saved, eager=1.0)]
    assert gpu_report.aim_table([*rows, row("swin", "train", eager=9.0)])[2:] == [
        "| train | 2 | 2.00 of 2 | 2.00 of 1 | 0.80 | 50% to 50% |"
    ]
