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

    Of two rows for one workload and pass the later stays, unless the earlier has more rivals.
    """
    stages, rows = dict(before.get("stages", {})), keyed(before.get("rows", []))
    results: Results = {"machine": asdict(machine), "stages": stages}
    results |= {name: before.get(name, []) for name in ("host", "kernels")}
    for name, outcome in outcomes.items():
        stages[name] = {"status": outcome.status, "text": outcome.text, "seconds": outcome.seconds}
        results |= {name: outcome.results.get(name, results[name]) for name in ("host", "kernels")}
        for key, row in keyed(outcome.results.get("rows", [])).items():
            if key not in rows or len(row["speedup"]) >= len(rows[key]["speedup"]):
                rows[key] = row
    return results | {"rows": list(rows.values())}


def keyed(rows: Sequence[Row]) -> dict[tuple[str, str, str], Row]:
    return {(row["name"], report.dtype(row), row["pass"]): row for row in rows}


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
    if results["rows"]:
        blocks += ["AIM's workloads in bf16:", "\n".join(aim_table(results["rows"]))]
        blocks.append(report.markdown(results["rows"]).rstrip())
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
