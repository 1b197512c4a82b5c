"""A picture of the benchmark: how many times faster than eager each workload runs, a panel per pass.

python benchmarks/plot.py FILE.json [FILE.json ...] picture.png
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import report
from report import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"fp32": "#3b6ea8", "bf16": "#d98032", "fp16": "#6a9a4b"}


def require() -> None:
    """ImportError with the remedy unless matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("a picture needs matplotlib; run pip install matplotlib")


def draw(rows: Sequence[Row], target: Path) -> None:
    """Write `target` (PNG): a panel per pass and number of threads, a bar per workload, torch.compile as a mark."""
    require()
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    order = ("forward", "backward", "train")
    panels = sorted(
        {(row["threads"], report.ran_on(row), row["pass"]) for row in rows},
        key=lambda panel: (panel[0], order.index(panel[2])),
    )
    names = list(dict.fromkeys((row["name"], report.dtype(row)) for row in rows))
    figure = Figure(figsize=(3.4 + 3.4 * len(panels), 2.2 + 0.26 * len(names)), dpi=130, layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, sharex=True, squeeze=False)[0]
    ratios = [value for row in rows for value in _marks(row)] or [1.0]
    low, high = min(0.9, 0.8 * min(ratios)), max(2.0, 1.15 * max(ratios))
    for ax, (_, where, kind) in zip(axes, panels, strict=True):
        mine = [row for row in rows if (report.ran_on(row), row["pass"]) == (where, kind) and _marks(row)]
        for row in mine:
            _bar(ax, row, names.index((row["name"], report.dtype(row))))
        means = ", ".join(f"{key[1]} {mean:.2f}" for key, mean, _, _ in report.means(mine, "eager"))
        ax.set_title(f"{kind}, {where}\nmean {means or '-'}", fontsize=9)
        ax.axvline(1, color="black", linewidth=1)
        ax.set_xscale("log")
        ticks = [t for t in (0.25, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 12, 16) if low <= t <= high]
        ax.set_xticks(ticks, [f"{t:g}x" for t in ticks], fontsize=8)
        ax.minorticks_off()
        ax.set_xlim(low, high)
        ax.grid(axis="x", alpha=0.3)
        ax.set_axisbelow(True)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(names)), [f"{name}  {dtype}" for name, dtype in names], fontsize=8)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    dtypes = [name for name in COLOURS if any(row["dtype"] == name for row in rows)]
    keys: list[Patch | Line2D] = [Patch(color=COLOURS[name], label=f"aim_fast {name}") for name in dtypes]
    if "compile" in report.rivals(rows):
        keys.append(Line2D([], [], marker="D", color="black", linestyle="", markersize=4, label="torch.compile"))
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), fontsize=8, frameon=False)
    figure.suptitle(f"Adapter: times faster than eager PyTorch (right of 1x is faster)\n{_machine(rows)}", fontsize=9)
    figure.savefig(target, format="png")


def _marks(row: Row) -> list[float]:
    """Speed over eager of aim_fast and, if it ran, of torch.compile."""
    over_eager = row["speedup"].get("eager")
    if over_eager is None:
        return []
    over_compile = row["speedup"].get("compile")
    return [over_eager] if over_compile is None else [over_eager, over_eager / over_compile]


def _bar(ax: Axes, row: Row, place: int) -> None:
    ratio, *others = _marks(row)
    ax.barh(place, ratio - 1, left=1, color=COLOURS[row["dtype"]], height=0.72)
    for other in others:
        ax.plot(other, place, "D", color="black", markersize=3.5, zorder=3)
    ahead = ratio >= 1
    ax.annotate(
        f"{ratio:.2f}",
        ((max if ahead else min)(ratio, *others, 1), place),
        (5 if ahead else -5, 0),
        textcoords="offset points",
        va="center",
        ha="left" if ahead else "right",
        fontsize=7.5,
        color="black" if ratio >= report.LOSS else "#b00020",
    )


def _machine(rows: Sequence[Row]) -> str:
    return " and ".join(dict.fromkeys(report.heading(row) for row in rows))


if __name__ == "__main__":
    *files, picture = map(Path, sys.argv[1:])
    draw([row for file in files for row in json.loads(file.read_text())["rows"]], picture)
