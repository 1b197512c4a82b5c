"""Rows of the benchmark as text: lines on the screen, a summary, and the Markdown table of the project's README.

python benchmarks/report.py FILE.json [FILE.json ...]                   prints the Markdown
python benchmarks/report.py FILE.json [FILE.json ...] --into README.md  puts it between the results markers
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

Row = dict[str, Any]
MANY_ROWS = 1000  # the means leave smaller cases out; every loss is listed, small or not
LOSS = 0.97  # below this a rival is faster; between this and 1 is a tie
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"

_TIMES = "case:<15 dtype:<8 pass:<8 us:>9 GFLOP/s:>7 GB/s:>6 roof:>5 peak:>5"
_REST = "saved_MiB:>15 peak_MiB:>15 error_(eager's):<25 by:<5"
# In the order of their columns.
_RIVALS = ("eager", "compile", "autotune", "cuda", "triton")


def heading(row: Row) -> str:
    """What all rows of one run share, but for the threads."""
    machine, versions, commit = row["machine"], row["versions"], row["commit"]
    if "gpu" in machine:
        where = f"{machine['gpu']}, {machine['sms']} SMs, CUDA {machine['cuda']}, Triton {machine['triton']}"
    else:
        where = f"{machine['cpu']}, {machine['cores']} cores, {machine['isa'] or 'no compiled library'}"
    state = "no commit" if commit["hash"] is None else commit["hash"][:10] + (" + changes" if commit["dirty"] else "")
    return f"{where}; torch {versions['torch']}, aim_fast {versions['aim_fast']} ({state}), Python {versions['python']}"


def _formats(names: Iterable[str]) -> list[tuple[str, str]]:
    """(heading, format) of each column, with one for each of these rivals."""
    ratios = " ".join(f"x_{name}:>{len(name) + 2}" for name in names)
    columns = (column.rsplit(":", 1) for column in f"{_TIMES} {ratios} {_REST}".split())
    return [(name.replace("_", " "), form) for name, form in columns]


def header(names: Iterable[str], indent: str = "") -> str:
    """The headings of `line` with the same rivals."""
    formats = _formats(names)
    return f"{indent} " + _aligned([name for name, _ in formats], formats)


def line(row: Row, names: Sequence[str]) -> str:
    """One row under `header`; memory and error with eager's in brackets."""
    error = worst_error(row)
    cells = [
        row["name"],
        dtype(row),
        row["pass"],
        _us(row),
        f"{row['gflops']:.0f}",
        f"{row['gbps']:.1f}",
        f"{row['roof']['share']:.0%}",
        f"{row['roof']['peak_share']:.0%}",
        *(_ratio(row, name) for name in names),
        _beside(row["saved_mib"]),
        _beside(row["peak_mib"]),
        f"{error['name']} {error['error']:.1e} ({error['eager_error']:.1e})",
        row["backend"],
    ]
    failures = "".join(f"  {name} failed: {why}" for name, why in row["failed"].items())
    return _aligned(cells, _formats(names)) + failures


def _aligned(cells: Iterable[str], formats: Sequence[tuple[str, str]]) -> str:
    return " ".join(f"{cell:{form}}" for cell, (_, form) in zip(cells, formats, strict=True)).rstrip()


def dtype(row: Row) -> str:
    return row["dtype"] + (" amp" if row["amp"] else "")


def _pass_of(row: Row) -> str:
    return f"{row['name']} {dtype(row)} {row['pass']}"


def ran_on(row: Row) -> str:
    """What a row is grouped by: the number of threads, or the GPU."""
    return row["machine"]["gpu"] if row.get("device", "cpu") == "cuda" else plural(row["threads"], "thread")


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def worst_error(row: Row) -> Row:
    """The result that is nearest to the limit of its budget."""
    return max(row["errors"].values(), key=lambda error: error["error"] / (error["allowed"] or 1.0))


def _ratio(row: Row, rival: str) -> str:
    if rival in row["failed"]:
        return "failed"
    return f"{row['speedup'][rival]:.2f}" if rival in row["speedup"] else "-"


def _us(row: Row) -> str:
    """The fused time, in three digits at least."""
    us = row["us"]["fused"]["median"]
    return f"{us:.0f}" if us >= 100 else f"{us:.1f}"


def _beside(values: dict[str, float]) -> str:
    return f"{values['fused']:.1f} ({values['eager']:.1f})" if values else "-"


def groups(rows: Iterable[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Rows by where they ran, dtype and pass."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["threads"], row["dtype"], row["pass"])):
        found.setdefault((ran_on(row), row["dtype"], row["pass"]), []).append(row)
    return found


def means(rows: Sequence[Row], rival: str) -> list[tuple[tuple[str, str, str], float, int, Row]]:
    """Per group the geometric mean over M >= 1000, the number of cases in it, and the worst row of all sizes."""
    found = []
    for key, members in groups(rows).items():
        timed = [row for row in members if rival in row["speedup"]]
        large = [row["speedup"][rival] for row in timed if row["M"] >= MANY_ROWS]
        if large:
            worst = min(timed, key=lambda row: row["speedup"][rival])
            found.append((key, geometric_mean(large), len(large), worst))
    return found


def rivals(rows: Iterable[Row]) -> list[str]:
    seen = {name for row in rows for name in row["speedup"]}
    return [name for name in _RIVALS if name in seen]


def passes(rows: Iterable[Row]) -> list[str]:
    seen = {row["pass"] for row in rows}
    return [kind for kind in ("forward", "backward", "train") if kind in seen]


def losses(rows: Sequence[Row], rival: str) -> list[Row]:
    return sorted((r for r in rows if r["speedup"].get(rival, 1.0) < LOSS), key=lambda row: row["speedup"][rival])


def summary(rows: Sequence[Row]) -> list[str]:
    """Geometric means, worst ratios and losses, as lines."""
    lines = []
    for rival in rivals(rows):
        lines.append(f"x {rival}, geometric mean over M >= {MANY_ROWS}, and the worst case of any size")
        for (among, name, kind), mean, count, worst in means(rows, rival):
            where = f"{worst['speedup'][rival]:.2f} {worst['name']} {dtype(worst)}"
            lines.append(f"  {name} {kind:<8} {among}  {mean:.2f} ({plural(count, 'case')})   worst {where}")
        lost = losses(rows, rival)
        ahead = sum(row["speedup"].get(rival, 0.0) > 1 / LOSS for row in rows)
        timed = sum(rival in row["speedup"] for row in rows)
        lines.append(f"  faster in {ahead} of {timed}, slower in {len(lost)}{':' if lost else ''}")
        lines += [f"    {row['speedup'][rival]:.2f} {_pass_of(row)}, {ran_on(row)}" for row in lost]
    return lines or ["nothing was timed"]


def markdown(rows: Sequence[Row]) -> str:
    """The results section of a README: means, losses, and a table per machine and number of threads."""
    if not rows:
        raise ValueError("report: the files hold no rows; run benchmarks/bench_adapter.py --json FILE first")
    blocks = []
    runs: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["threads"]):
        runs.setdefault((ran_on(row), heading(row)), []).append(row)
    for (where, machine), mine in runs.items():
        when = max(row["date"] for row in mine)[:10]
        blocks.append(f"**{where}**: {machine}; {when}")
        blocks.append(_means_table(mine))
        for rival in rivals(mine):
            lost = [
                f"{row['name']} {dtype(row)} {row['pass']} {row['speedup'][rival]:.2f}" for row in losses(mine, rival)
            ]
            blocks.append(f"Slower than {rival} (below {LOSS}): {'; '.join(lost) if lost else 'none'}.")
        blocks += ["<details><summary>Every case</summary>", _cases_table(mine), "</details>"]
    return "\n\n".join(blocks) + "\n"


def _means_table(rows: Sequence[Row]) -> str:
    lines = table_head("geometric mean, M >= 1000", *(f"x {rival} (worst case)" for rival in rivals(rows)))
    columns = [{key: (mean, worst) for key, mean, _, worst in means(rows, rival)} for rival in rivals(rows)]
    for key in groups(rows):
        cells = [f"{key[1]} {key[2]}"]
        for rival, column in zip(rivals(rows), columns, strict=True):
            if key in column:
                mean, worst = column[key]
                cells.append(f"**{mean:.2f}** ({worst['speedup'][rival]:.2f} {worst['name']})")
            else:
                cells.append("-")
        lines.append(table_row(cells))
    return "\n".join(lines)


def _cases_table(rows: Sequence[Row]) -> str:
    """A line per workload, the passes side by side."""
    shown = passes(rows)
    columns = ["case", "M, D, H", "dtype"]
    for kind in shown:
        columns += [f"{kind} us", "% of roof", *(f"x {rival}" for rival in rivals(rows))]
    lines = table_head(*columns, "saved MiB (eager)", "peak MiB (eager)", "error (eager)")
    by_workload: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        by_workload.setdefault((row["name"], dtype(row)), {})[row["pass"]] = row
    for (name, kind_of), found in by_workload.items():
        last = found[[kind for kind in shown if kind in found][-1]]
        cells = [name, f"{last['M']}, {last['D']}, {last['H']}", kind_of]
        for kind in shown:
            if kind in found:
                row = found[kind]
                cells += [_us(row), f"{row['roof']['share']:.0%}"]
                cells += [_ratio(row, rival) for rival in rivals(rows)]
            else:
                cells += ["-"] * (2 + len(rivals(rows)))
        error = worst_error(last)
        cells += [_beside(last["saved_mib"]), _beside(last["peak_mib"])]
        cells.append(f"{error['name']} {error['error']:.1e} ({error['eager_error']:.1e})")
        lines.append(table_row(cells))
    return "\n".join(lines)


def host_table(rows: Sequence[Row]) -> str:
    """The rows of host_cost.py; a ratio above 1 says that fused costs the host less than eager."""
    lines = table_head("M = 1, D, H", "form", "pass", "fused us", "eager us", "x eager")
    for row in rows:
        fused, eager = row["us"]["fused"], row["us"]["eager"]
        cells = [f"{row['D']}, {row['H']}", row["form"], row["pass"], f"{fused:.1f}", f"{eager:.1f}"]
        lines.append(table_row([*cells, f"{eager / fused:.2f}"]))
    return "\n".join(lines) + "\n"


def table_head(*columns: str) -> list[str]:
    return [table_row(columns), "|" + " --- |" * len(columns)]


def table_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def insert(document: str, text: str) -> str:
    """`document` with `text` between its results markers. Raises ValueError unless both are there once, in order."""
    if document.count(BEGIN) != 1 or document.count(END) != 1 or document.index(BEGIN) > document.index(END):
        raise ValueError(f"report: the document needs the markers {BEGIN} and {END} once each, in this order")
    before, after = document.split(BEGIN)[0], document.split(END)[1]
    return f"{before}{BEGIN}\n{text}{END}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="what bench_adapter.py --json wrote")
    parser.add_argument("--into", type=Path, metavar="FILE", help="a document with the results markers")
    options = parser.parse_args(argv)
    try:
        text = markdown([row for file in options.files for row in json.loads(file.read_text())["rows"]])
        if options.into is None:
            print(text, end="")
        else:
            options.into.write_text(insert(options.into.read_text(), text))
    except (OSError, ValueError, KeyError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
