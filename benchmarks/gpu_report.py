"""What gpu_check.py leaves: one file of results for a GPU and a day, and its Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import geometric_mean
from typing import Any

import gpu_counters
import report
from gpu_machine import Machine
from gpu_outcome import Outcome
from report import Row

Results = dict[str, Any]


def file_name(gpu: str) -> str:
    """ "NVIDIA H100 80GB HBM3" -> "nvidia-h100-80gb-hbm3"."""
    return "-".join(re.findall(r"[a-z0-9]+", gpu.lower()))


def merged(before: Results, machine: Machine, outcomes: Mapping[str, Outcome]) -> Results:
    """The results of earlier stages of the day with these in their place or beside them.

    Each row stays as its stage's process measured it; `joined` makes the table.
    """
    stages, rows = dict(before.get("stages", {})), {_measured(row): row for row in before.get("rows", [])}
    results: Results = {"machine": asdict(machine), "stages": stages}
    results |= {name: before.get(name, []) for name in ("host", "kernels")}
    for name, outcome in outcomes.items():
        stages[name] = {"status": outcome.status, "text": outcome.text, "seconds": outcome.seconds}
        results |= {name: outcome.results.get(name, results[name]) for name in ("host", "kernels")}
        mine = [{**row, "stage": name} for row in outcome.results.get("rows", [])]
        rows |= {_measured(row): row for row in mine}
    return results | {"rows": list(rows.values())}


def _workload(row: Row) -> tuple[str, ...]:
    return row["name"], report.dtype(row), row["pass"]


def _measured(row: Row) -> tuple[str, ...]:
    return *_workload(row), row.get("stage", "")


def joined(rows: Sequence[Row]) -> list[Row]:
    """One row per workload and pass, with a ratio for each rival that any stage had."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(_workload(row), []).append(row)
    return [_one(mine) for mine in found.values()]


def _one(rows: Sequence[Row]) -> Row:
    """The row with the most rivals, of equals the first stage's; and what else the others had.

    A ratio comes with its row, the latest that has it: fused and rival were timed in one process. Rows of other code or
    another machine than the latest's are left out.
    """
    by_date = sorted(rows, key=lambda row: row["date"])
    same = [row for row in by_date if _code(row) == _code(by_date[-1])]
    stays = max((row for row in rows if row in same), key=lambda row: len(row["us"]))
    said: dict[str, tuple[str, Any]] = {}
    for row in (*same, stays):
        said |= {rival: (field, value) for field in ("speedup", "failed") for rival, value in row[field].items()}
    by_field = {
        field: {rival: value for rival, (where, value) in said.items() if where == field}
        for field in ("speedup", "failed")
    }
    return stays | by_field


def _code(row: Row) -> tuple[Any, ...]:
    return row["machine"], row["versions"], row["commit"]["hash"]


def markdown(results: Results) -> str:
    """The stages, the host's time, and the benchmark's tables."""
    machine = results["machine"]
    lines = report.table_head("stage", "outcome", "seconds", "what came of it")
    for name, stage in results["stages"].items():
        text = " ".join(stage["text"].split()).replace("|", "/")
        lines.append(report.table_row([name, stage["status"], f"{stage['seconds']:.0f}", text]))
    blocks = [f"# {machine['gpu'] or 'No GPU'}, torch {machine['torch']}", "\n".join(lines)]
    if results["host"]:
        blocks += ["Host time per call at M = 1, fp32:", report.host_table(results["host"]).rstrip()]
    if results["kernels"]:
        head = report.table_head("backend", "kernel", *gpu_counters.COUNTERS)
        lines = [report.table_row(cells) for cells in gpu_counters.table(results["kernels"])]
        blocks += [f"Kernels of a forward and a train step of {gpu_counters.CASE} in bf16, by their counters:"]
        blocks += ["\n".join([*head, *lines])]
    if rows := joined(results["rows"]):
        blocks += ["AIM's workloads in bf16:", "\n".join(aim_table(rows))]
        blocks.append(report.markdown(rows).rstrip())
    return "\n\n".join(blocks) + "\n"


def aim_table(rows: Sequence[Row]) -> list[str]:
    """Geometric means over AIM's workloads in bf16, a line per pass; the share of the roof from worst to best."""
    rivals = report.rivals(rows)
    lines = report.table_head(
        "pass", "cases", *(f"x {rival}" for rival in rivals), "memory kept, of eager's", "% of roof"
    )
    for kind in report.passes(rows):
        mine = [
            row for row in rows if row["name"].startswith("aim_") and row["dtype"] == "bf16" and row["pass"] == kind
        ]
        if mine:
            ratios = [[row["speedup"][rival] for row in mine if rival in row["speedup"]] for rival in rivals]
            kept = [row["saved_mib"]["fused"] / row["saved_mib"]["eager"] for row in mine if row["saved_mib"]]
            shares = [row["roof"]["share"] for row in mine]
            means = [f"{geometric_mean(values):.2f} of {len(values)}" if values else "-" for values in ratios]
            memory = f"{geometric_mean(kept):.2f}" if kept else "-"
            lines.append(
                report.table_row([kind, str(len(mine)), *means, memory, f"{min(shares):.0%} to {max(shares):.0%}"])
            )
    return lines
