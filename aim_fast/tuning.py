"""What was measured on a GPU: the table that `python -m aim_fast tune` leaves, and plans and advice from it.

The table is a JSON file per GPU in the user's cache folder ($AIM_FAST_CACHE, else $XDG_CACHE_HOME/aim_fast, else
~/.cache/aim_fast). Every part of it is checked as it is read: a file that is broken, of another GPU, or of another
version of the tiling table is left alone, and `explain` says why. Nothing is measured while a program runs.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from aim_fast.kernels import estimate, tiling
from aim_fast.kernels.tiling import Gpu, Plan, Tile

FORMAT = 1
# A measurement speaks for as many rows, times or divided by this.
REACH = 2.0


class Row(NamedTuple):
    """One measured call: seconds of a forward and a train step, fused and eager, and the plans that were fastest."""

    M: int
    plans: dict[str, Plan]
    forward: tuple[float, float]
    train: tuple[float, float]


# By load class, D and H.
Rows = dict[tuple[str, int, int], list[Row]]


class Table(NamedTuple):
    """Rows, or why there are none."""

    rows: Rows
    reason: str = ""


def path(gpu: Gpu) -> Path:
    """Where the table of a GPU lies, or would."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("AIM_FAST_CACHE") or Path(base, "aim_fast"))
    return folder / f"tune-{re.sub('[^a-z0-9]+', '-', gpu.name.lower()).strip('-')}.json"


def to_json(gpu: Gpu, rows: Rows, about: dict[str, str]) -> str:
    """The text of a table; `about` is for people: versions and the date."""
    listed = [
        {"load": key[0], "D": key[1], "H": key[2], **row._asdict()} for key, found in rows.items() for row in found
    ]
    return json.dumps({"format": FORMAT, "gpu": gpu._asdict(), "about": about, "rows": listed}, indent=1) + "\n"


def _plan(gpu: Gpu, kernel: str, load: str, H: int, value: Any) -> Plan:
    """A plan as JSON gives it, if the tiling table still has its tile; ValueError otherwise."""
    tile, parts, split = value
    plan = Plan(Tile(*tile), tuple(parts), split)
    if plan.tile not in tiling.tiles(gpu, kernel, load, H) or plan.parts != tiling.parts(H, plan.tile.part):
        raise ValueError(f"the tile {tuple(tile)} of {kernel} is not in this version's tiling table")
    if type(split) is not int or split < 1 or (kernel != "dw" and split not in tiling.SPLITS):
        raise ValueError(f"a split of {split!r} is none that {kernel} has")
    return plan


def _pair(value: Any) -> tuple[float, float]:
    fused, eager = map(float, value)
    if not (0 < fused < math.inf and 0 < eager < math.inf):
        raise ValueError(f"{value!r} are no two times")
    return fused, eager


def from_json(gpu: Gpu, text: str) -> Table:
    """The table in a text, with a reason in place of rows if anything about it is not as it should be."""
    try:
        data = json.loads(text)
        if data["format"] != FORMAT:
            return Table({}, f"it has format {data['format']!r}, this version reads {FORMAT}")
        if Gpu(data["gpu"]["name"], tuple(data["gpu"]["capability"]), data["gpu"]["sms"]) != gpu:
            return Table({}, f"it was measured on another GPU, {data['gpu']['name']}")
        rows: Rows = {}
        for entry in data["rows"]:
            key = entry["load"], int(entry["D"]), int(entry["H"])
            plans = {kernel: _plan(gpu, kernel, *key[::2], entry["plans"][kernel]) for kernel in tiling.KERNELS}
            M = int(entry["M"])
            if M < 1:
                raise ValueError(f"M is {M}")
            rows.setdefault(key, []).append(Row(M, plans, _pair(entry["forward"]), _pair(entry["train"])))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        return Table({}, f"it is broken ({type(error).__name__}: {error})")
    return Table(rows)


_tables: dict[Gpu, Table] = {}  # read once


def table(gpu: Gpu) -> Table:
    """The measurements that hold for a GPU."""
    if gpu not in _tables:
        _tables[gpu] = _read(gpu)
    return _tables[gpu]


def replace(gpu: Gpu, new: Table) -> None:
    """Let these measurements hold for a GPU, in this process."""
    _tables[gpu] = new
    advice.cache_clear()


def _read(gpu: Gpu) -> Table:
    file = path(gpu)
    try:
        text = file.read_text()
    except FileNotFoundError:
        return Table({})
    except (OSError, UnicodeDecodeError) as error:
        return Table({}, f"{file} was ignored: {error}")
    found = from_json(gpu, text)
    return found if not found.reason else Table({}, f"{file} was ignored: {found.reason}")


def save(gpu: Gpu, rows: Rows, about: dict[str, str]) -> Path:
    """Write the table of a GPU, whole or not at all, and return where it lies."""
    file = path(gpu)
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(f".{os.getpid()}")
    new.write_text(to_json(gpu, rows, about))
    new.replace(file)
    replace(gpu, Table(rows))
    return file


def nearest(gpu: Gpu, load: str, M: int, D: int, H: int) -> Row | None:
    """The measurement that speaks for a call: of the same load class, D and H, and of nearly as many rows."""
    rows = table(gpu).rows.get((load, D, H), [])
    near = min(rows, key=lambda row: abs(math.log(row.M / M)), default=None)
    return near if near is not None and M / REACH <= near.M <= M * REACH else None


def plan(gpu: Gpu, kernel: str, load: str, M: int, D: int, H: int, sides: int, dims: int = 1) -> Plan:
    """The plan of a kernel that has tiles: the one measured to be fastest, else what the tiling table puts first."""
    row = nearest(gpu, load, M, D, H)
    found = tiling.plans(gpu, kernel, load, M, D, H, sides, dims)
    # Rows of more than one dimension were not measured: they may need a smaller tile.
    if row is not None and row.plans[kernel].tile in {plan.tile for plan in found}:
        return row.plans[kernel]
    return found[0]


@functools.lru_cache(maxsize=4096)
def advice(gpu: Gpu, case: estimate.Case, train: bool) -> tuple[bool, str]:
    """Whether Triton is worth it for a call, and the words for it: measured where that was done, else estimated."""
    row = nearest(gpu, case.load, case.M, case.D, case.H)
    if row is not None:
        fused, eager = row.train if train else row.forward
        basis = f"measured on this GPU at M = {row.M}"
    else:
        fused, eager = estimate.estimate(gpu, case, train=train)
        basis = "estimated from counted bytes and FLOP, not measured"
        if table(gpu).reason:
            basis += f"; {table(gpu).reason}"
    step = "a train step" if train else "a forward"
    ratio = f"{fused * 1e6:.0f} us against eager's {eager * 1e6:.0f} us for {step}, {basis}"
    at = f"M = {case.M}, D = {case.D}, H = {case.H} on {gpu.name}"
    if fused < eager:
        return True, f"triton: fused kernels for NVIDIA GPUs, {ratio}, at {at}"
    return False, f"triton: not worth it at {at}: {ratio}"
