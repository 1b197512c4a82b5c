"""What was measured on a GPU: the table that `python -m aim_fast tune` leaves, and plans and advice from it.

A table is a JSON file per GPU. The one in the user's cache folder ($AIM_FAST_CACHE, else $XDG_CACHE_HOME/aim_fast, else
~/.cache/aim_fast) comes first; without one, a table that the package ships holds, of the same GPU or else of one with
the same compute capability and number of SMs. Every part of a file is checked as it is read: one that is broken, of
another GPU, or of another version of the tiling table is left alone, and `explain` says why if it is the user's.
Nothing is measured while a program runs.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from aim_fast.kernels import estimate, tiling
from aim_fast.kernels.tiling import Gpu, Plan, Tile

# Raised when the meaning of a file changes; so it is when plans of the CUDA kernels get other numbers. In format 3 the
# times of short calls were the host's.
FORMAT = 4
# The tables that come with the package, named like the user's.
SHIPPED = Path(__file__).parent / "measured"
HERE = "this GPU"  # where the user's table was measured; a shipped one says the name
# A measurement speaks for as many rows, times or divided by this.
REACH = 2.0
# A call that is shorter on the device than for the host waits for the host: there the CUDA kernels may take a tenth
# more of the device, since they take less of the host. Seconds of a forward and a train step, measured on an H200
# machine at M = 1 in fp32, where the composition takes 49e-6 and 390e-6.
HOST = {False: 35e-6, True: 216e-6}
TIE = 1.1


class Row(NamedTuple):
    """One measured call: what was fastest of each backend, and its device seconds of a forward and of a train step.

    plans: of Triton's kernels, empty where it was not there or has no tile. cuda: of the CUDA kernels by "forward" and
    "backward", as csrc/cuda/device.h names the choices ("" for their rule's), empty where they were not there or do not
    take the call. forward and train: by the names of those backends, and always of eager.
    """

    M: int
    plans: Mapping[str, Plan]
    cuda: Mapping[str, str]
    forward: Mapping[str, float]
    train: Mapping[str, float]


DIRECTIONS = ("forward", "backward")


_WHAT = {"cuda": "fused CUDA kernels for NVIDIA GPUs", "triton": "fused kernels for NVIDIA GPUs"}
# By load class, D and H.
Rows = dict[tuple[str, int, int], list[Row]]


class Table(NamedTuple):
    """Rows, on what and when they were measured; and why the user's file, if not theirs, was ignored."""

    rows: Rows
    reason: str = ""
    gpu: str = HERE
    date: str = ""


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


def _plans(gpu: Gpu, load: str, H: int, value: Any) -> dict[str, Plan]:
    return {kernel: _plan(gpu, kernel, load, H, value[kernel]) for kernel in tiling.KERNELS} if value else {}


def _cuda(value: Any) -> dict[str, str]:
    """The plans of the CUDA kernels; one that the library has not is not used."""
    found = {direction: value[direction] for direction in DIRECTIONS} if value else {}
    if wrong := [plan for plan in found.values() if not re.fullmatch(r"((tiles|ampere|hopper)(/\d{1,2})?)?", plan)]:
        raise ValueError(f"{wrong[0]!r} is no plan of the CUDA kernels")
    return found


def _times(value: Any, plans: Mapping[str, Plan], cuda: Mapping[str, str]) -> dict[str, float]:
    found = {name: float(seconds) for name, seconds in value.items()}
    expected = {"eager", *(["triton"] if plans else []), *(["cuda"] if cuda else [])}
    if set(found) != expected or not all(0 < seconds < math.inf for seconds in found.values()):
        raise ValueError(f"{value!r} are no times of {', '.join(sorted(expected))}")
    return found


def from_json(gpu: Gpu, text: str, *, shipped: bool = False) -> Table:
    """The table in a text, with a reason in place of rows if anything about it is not as it should be.

    shipped: it may be of a GPU with another name, but the same compute capability and number of SMs.
    """
    try:
        data = json.loads(text)
        if data["format"] != FORMAT:
            return Table({}, f"it has format {data['format']!r}, this version reads {FORMAT}")
        measured = Gpu(data["gpu"]["name"], tuple(data["gpu"]["capability"]), data["gpu"]["sms"])
        if measured != (gpu._replace(name=measured.name) if shipped else gpu):
            return Table({}, f"it was measured on another GPU, {measured.name}")
        rows: Rows = {}
        for entry in data["rows"]:
            key = entry["load"], int(entry["D"]), int(entry["H"])
            plans, cuda = _plans(gpu, *key[::2], entry["plans"]), _cuda(entry["cuda"])
            M = int(entry["M"])
            if M < 1:
                raise ValueError(f"M is {M}")
            forward, train = (_times(entry[name], plans, cuda) for name in ("forward", "train"))
            rows.setdefault(key, []).append(Row(M, plans, cuda, forward, train))
        date = str(data["about"].get("date", ""))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        return Table({}, f"it is broken ({type(error).__name__}: {error})")
    return Table(rows, gpu=measured.name if shipped else HERE, date=date)


_tables: dict[Gpu, Table] = {}  # read once
generation = 0  # of the tables: raised when one is replaced, for what was derived from them and kept


def table(gpu: Gpu) -> Table:
    """The measurements that hold for a GPU."""
    if gpu not in _tables:
        _tables[gpu] = _read(gpu)
    return _tables[gpu]


def replace(gpu: Gpu, new: Table) -> None:
    """Let these measurements hold for a GPU, in this process."""
    global generation
    _tables[gpu] = new
    advice.cache_clear()
    generation += 1  # last: what is derived under the new number comes from the new table


def _read(gpu: Gpu) -> Table:
    file = path(gpu)
    try:
        found = from_json(gpu, file.read_text())
    except FileNotFoundError:
        return _shipped(gpu)
    except (OSError, UnicodeDecodeError) as error:
        found = Table({}, str(error))
    return _shipped(gpu)._replace(reason=f"{file} was ignored: {found.reason}") if found.reason else found


def _shipped(gpu: Gpu) -> Table:
    """The table that the package has for a GPU: its own, else a twin's."""
    own = SHIPPED / path(gpu).name
    files = sorted(SHIPPED.glob("*.json"), key=lambda file: (file != own, file))
    tables = (from_json(gpu, file.read_text(), shipped=True) for file in files)
    return next((found for found in tables if not found.reason), Table({}))


def save(gpu: Gpu, rows: Rows, about: dict[str, str]) -> Path:
    """Write the table of a GPU, whole or not at all, and return where it lies."""
    file = path(gpu)
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(f".{os.getpid()}")
    new.write_text(to_json(gpu, rows, about))
    new.replace(file)
    replace(gpu, Table(rows, date=about.get("date", "")))
    return file


def nearest(gpu: Gpu, load: str, M: int, D: int, H: int) -> Row | None:
    """The measurement that speaks for a call: of the same load class, D and H, and of nearly as many rows."""
    rows = table(gpu).rows.get((load, D, H), [])
    near = min(rows, key=lambda row: abs(math.log(row.M / M)), default=None)
    return near if near is not None and M / REACH <= near.M <= M * REACH else None


def timed(gpu: Gpu, load: str, M: int, D: int, H: int, train: bool) -> tuple[dict[str, float], str]:
    """Device seconds of each backend, and the rows that say so: measured, or between two measurements on a power of M.

    One measurement speaks alone where the next is more than REACH squared away from it; none: no times.
    """
    row = nearest(gpu, load, M, D, H)
    if row is None:
        return {}, ""
    rows = table(gpu).rows[load, D, H]
    low = max((one for one in rows if one.M <= M), key=lambda one: one.M, default=row)
    high = min((one for one in rows if one.M >= M), key=lambda one: one.M, default=row)
    if not low.M < high.M <= low.M * REACH**2:
        low = high = row
    first, last = (one.train if train else one.forward for one in (low, high))
    part = math.log(M / low.M) / math.log(high.M / low.M) if low is not high else 0.0
    times = {name: first[name] ** (1 - part) * last[name] ** part for name in first if name in last}
    return times, f"M = {low.M}" + (f" and {high.M}" if low is not high else "")


def plan(gpu: Gpu, kernel: str, load: str, M: int, D: int, H: int, sides: int, dims: int = 1) -> Plan:
    """The plan of a kernel that has tiles: the one measured to be fastest, else what the tiling table puts first."""
    row = nearest(gpu, load, M, D, H)
    found = tiling.plans(gpu, kernel, load, M, D, H, sides, dims)
    # Rows of more than one dimension were not measured: they may need a smaller tile.
    if row is not None and row.plans and row.plans[kernel].tile in {plan.tile for plan in found}:
        return row.plans[kernel]
    return found[0]


def cuda_plan(gpu: Gpu, direction: str, load: str, M: int, D: int, H: int) -> str:
    """The plan of the CUDA kernels that was measured to be fastest, or a family; "" for the rule's, and unmeasured."""
    row = nearest(gpu, load, M, D, H)
    return "" if row is None else row.cuda.get(direction, "")


@functools.lru_cache(maxsize=4096)
def advice(gpu: Gpu, case: estimate.Case, train: bool, backend: str) -> tuple[bool, str]:
    """Whether "cuda" or "triton" is worth it for a call, and the words for it.

    The CUDA kernels are where they were measured and nothing was faster, or by little where the host is what takes
    long; Triton where it is faster than eager, as measured or else estimated.
    """
    found = table(gpu)
    times, rows = timed(gpu, case.load, case.M, case.D, case.H, train)
    ignored = f"; {found.reason}" if found.reason else ""
    at = f"M = {case.M}, D = {case.D}, H = {case.H} on {gpu.name}"
    if backend in times:
        basis = f"measured on {found.gpu} at {rows}{ignored}"
        rivals = {name: seconds for name, seconds in times.items() if name != backend}
        fused = times[backend]
        best = min(rivals.values() if backend == "cuda" else [rivals["eager"]])
        of_host = backend == "cuda" and best <= fused < min(HOST[train], TIE * best)
        worth = fused < best or of_host
    elif backend == "cuda":
        remedy = "use_backend('cuda') or python -m aim_fast tune"
        return False, f"cuda: never measured on this GPU at {at}; {remedy}{ignored}"
    else:
        basis = f"estimated from counted bytes and FLOP, not measured{ignored}"
        fused, eager = estimate.estimate(gpu, case, train=train)
        rivals, worth, of_host = {"eager": eager}, fused < eager, False
    against = " and ".join(f"{name}'s {seconds * 1e6:.0f} us" for name, seconds in sorted(rivals.items()))
    step = "a train step" if train else "a forward"
    ratio = f"{fused * 1e6:.0f} us against {against} for {step}, {basis}"
    if worth:
        less = ", and less of the host, for which a call so short waits" if of_host else ""
        return True, f"{backend}: {_WHAT[backend]}, {ratio}{less}, at {at}"
    return False, f"{backend}: not worth it at {at}: {ratio}"
