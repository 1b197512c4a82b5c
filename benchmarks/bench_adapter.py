"""The adapter's benchmark: every workload is checked against float64, then timed in turns with its rivals.

    python benchmarks/bench_adapter.py --quick
    python benchmarks/bench_adapter.py --cases 'aim_b_*' --dtypes bf16 --pass train --json out.json
    python benchmarks/bench_adapter.py --device cuda --dtypes bf16 fp16

Exit status: 0; 1 when a result was wrong or a call failed (that case is not timed); 130 after Ctrl-C, which still
prints and writes what was measured. benchmarks/README.md says how to read the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import accuracy
import aim_fast
import harness
import memory
import plot
import report
import roof
from aim_fast.routing import BACKENDS
from cases import QUICK
from devices import DEVICES
from harness import PASSES, RIVALS, Inputs, Rival, Workload
from machine import provenance

QUICK_SECONDS = 90.0  # what has not begun by then is left out and named


class WrongResultError(Exception):
    """A result that is outside its error budget and so must not be timed."""


def words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    many: dict[str, Any] = {"type": words, "nargs": "+", "metavar": "NAME"}
    parser.add_argument("--cases", help="names or globs (default: all)", **many)
    parser.add_argument("--dtypes", help="of fp32 bf16 fp16 (default: fp32 bf16)", **many)
    parser.add_argument("--pass", dest="passes", help=f"of {' '.join(PASSES)} (default: forward train)", **many)
    rivals = f"of {' '.join(RIVALS)} (default: eager compile, autotune too on a GPU; with --quick eager)"
    parser.add_argument("--rivals", help=rivals, **many)
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="default: cpu")
    backends = ["auto", *(row.name for row in aim_fast.backends())]
    parser.add_argument("--backend", choices=backends, default=None, help="force one (default: aim_fast's own choice)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: torch's)")
    parser.add_argument("--seconds", type=float, help="timing per case and pass (default: 3; with --quick 0.8)")
    parser.add_argument("--within", type=float, metavar="SECONDS", help="begin no workload after that, and name those")
    parser.add_argument("--quick", action="store_true", help="a subset, within two minutes on two cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture (PNG) of the speed-ups")
    options = parser.parse_args(argv)

    defaults = {
        "cases": QUICK if options.quick else ("*",),
        "dtypes": ("fp32", "bf16"),
        "passes": ("forward", "train"),
        "rivals": ("eager",) if options.quick else DEVICES[options.device].rivals,
    }
    for name, default in defaults.items():
        given = getattr(options, name)
        setattr(options, name, [word for part in given for word in part] if given else list(default))
    if options.seconds is None:
        options.seconds = 0.8 if options.quick else 3.0
    if options.within is None:
        options.within = QUICK_SECONDS if options.quick else math.inf
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU; expected one, and a torch that is built for CUDA")
    for flag, given, known in (("pass", options.passes, PASSES), ("rivals", options.rivals, RIVALS)):
        for name in given:
            if name not in known:
                parser.error(f"--{flag} {name} is unknown; expected some of {', '.join(known)}")
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads is {options.threads}; expected 1 or more")
    try:
        options.workloads = harness.select(options.cases, options.dtypes, options.device)
        if options.plot is not None:
            plot.require()
        for target in (options.json, options.plot):
            if target is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, ImportError, OSError) as error:
        parser.error(str(error))
    if not options.workloads:
        parser.error("these cases have none of these dtypes")
    if options.quick:
        # The least work first: where a rival takes seconds, the large ones leave no time for the others.
        options.workloads.sort(key=lambda one: one.case.M * one.case.D * one.case.H)
    return options


def measure(workload: Workload, inputs: Inputs, rivals: dict[str, Rival], kind: str, seconds: float) -> dict[str, Any]:
    """One row: check, time, roof and memory of one pass. Raises WrongResultError for a wrong result."""
    failed: dict[str, str] = {}
    calls = {"fused": harness.fused(workload.case), **rivals}
    reference = harness.eager(workload.case)
    for name in [name for name in calls if name not in ("fused", "eager")]:
        try:
            one = harness.step(workload, inputs, calls[name], kind)
            one.run(one.prepare())
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            del calls[name]
    errors = accuracy.check(workload, inputs, calls, reference, kind)
    wrong = {name: "; ".join(str(e) for e in found if not e.ok) for name, found in errors.items()}
    if own := [f"{name}: {wrong[name]}" for name in ("fused", *BACKENDS) if wrong.get(name)]:
        raise WrongResultError("; ".join(own))
    for name in [name for name in calls if wrong[name]]:
        failed[name] = f"wrong, not timed: {wrong[name]}"
        del calls[name]

    sets = harness.rotation(workload, inputs)
    steps = {name: [harness.step(workload, s, call, kind) for s in sets] for name, call in calls.items()}
    before = roof.measure(workload.dtype, workload.device)
    times = harness.interleave(steps, seconds, workload.device)
    host_seconds = DEVICES[workload.device].host_seconds
    host = {name: statistics.median(host_seconds(of)) for name, of in steps.items()} if host_seconds else {}
    limits = roof.better(before, roof.measure(workload.dtype, workload.device))

    least, typical = roof.work(workload, kind), statistics.median(times["fused"])
    with workload.autocast():
        chosen = aim_fast.explain(
            *inputs.arguments[:5],
            activation=workload.case.activation,
            skip=workload.case.skip,
            scale=workload.case.scale,
            residual=inputs.residual,
        )
    compared = {"fused": calls["fused"], "eager": reference}
    saved = {name: memory.saved_bytes(workload, inputs, call) / memory.MIB for name, call in compared.items()}
    peak = {name: memory.peak_bytes(workload, inputs, call, kind) / memory.MIB for name, call in compared.items()}
    return {
        **{name: value for name, value in asdict(workload.case).items() if name != "modes"},
        "dtype": workload.dtype,
        "amp": workload.amp,
        "pass": kind,
        "backend": chosen.backend,
        "rounds": len(times["fused"]),
        "sets": len(sets),
        "us": {name: _spread(values) for name, values in times.items()},
        "host_us": {name: 1e6 * value for name, value in host.items()},
        "speedup": {name: statistics.median(times[name]) / typical for name in times if name != "fused"},
        "failed": failed,
        "gflop": least.flops / 1e9,
        "gbyte": least.bytes / 1e9,
        "gflops": least.flops / typical / 1e9,
        "gbps": least.bytes / typical / 1e9,
        "roof": {
            **asdict(limits),
            "share": limits.seconds(least) / typical,
            "peak_share": least.flops / typical / 1e9 / limits.gflops,
        },
        "saved_mib": saved if kind != "forward" else {},
        "peak_mib": peak,
        "errors": {error.name: asdict(error) for error in errors["fused"]},
    }


def _spread(seconds: list[float]) -> dict[str, float]:
    low, middle, high = (1e6 * value for value in statistics.quantiles(seconds, n=4, method="inclusive"))
    return {"median": middle, "p25": low, "p75": high}


class Progress:
    """Where the run stands: a status line that is overwritten on a terminal, and a count before each row."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.start = total, 0, time.monotonic()
        self.live = sys.stderr.isatty()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.start

    @property
    def count(self) -> str:
        minutes, seconds = divmod(int(self.elapsed), 60)
        return f"[{self.done:>{len(str(self.total))}}/{self.total} {minutes}:{seconds:02}]"

    def status(self, text: str) -> None:
        if self.live:
            print(f"\r\033[K{self.count} {text} ...", end="", file=sys.stderr, flush=True)

    def row(self, text: str) -> None:
        if self.live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        print(f"{self.count} {text}", flush=True)


def save(target: Path | None, rows: list[dict[str, Any]], problems: list[str]) -> None:
    """Write the file at once, so that a run that is killed leaves the rows that it had."""
    if target is not None:
        part = target.with_suffix(".part")
        part.write_text(json.dumps({"rows": rows, "problems": problems}, indent=1) + "\n")
        part.replace(target)


def run(options: argparse.Namespace, rows: list[dict[str, Any]], problems: list[str]) -> None:
    """Measure every workload and pass, appending to `rows` and `problems` as it goes, and to the file."""
    progress = Progress(len(options.workloads) * len(options.passes))
    common = {**provenance(options.device), "threads": torch.get_num_threads()}
    print(f"{report.heading(common)}; {report.ran_on(common)}")
    for dtype in dict.fromkeys(workload.dtype for workload in options.workloads):
        print(f"roof {dtype}: {roof.measure(dtype, options.device)}")
    print(report.header(options.rivals, " " * len(progress.count)))
    for workload in options.workloads:
        needed, free = memory.needed_bytes(workload), memory.available_bytes(workload.device)
        left_out = ""
        if progress.elapsed > options.within:
            left_out = f"no time left within {options.within:.0f} s"
        elif free is not None and needed > 0.8 * free:
            left_out = f"needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
        if left_out:
            progress.done += len(options.passes)
            progress.row(f"{workload}: left out, {left_out}")
            continue
        progress.status(f"{workload}: inputs")
        inputs = harness.build(workload)
        rivals = {name: RIVALS[name](workload.case) for name in options.rivals}
        for kind in options.passes:
            progress.status(f"{workload} {kind}")
            try:
                row = measure(workload, inputs, rivals, kind, options.seconds)
            except Exception as error:
                kept = "wrong, not timed" if isinstance(error, WrongResultError) else f"failed, {type(error).__name__}"
                problems.append(f"{workload} {kind}: {kept}: {error}")
                progress.done += 1
                progress.row(problems[-1])
                continue
            date = datetime.now(timezone.utc).isoformat(timespec="seconds")
            rows.append({**row, **common, "date": date})
            progress.done += 1
            progress.row(report.line(rows[-1], options.rivals))
            save(options.json, rows, problems)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    status = 0
    try:
        with aim_fast.use_backend(options.backend) if options.backend else contextlib.nullcontext():
            run(options, rows, problems)
    except KeyboardInterrupt:
        print("\ninterrupted; what was measured until now:", flush=True)
        status = 130
    print("\n".join(["", *report.summary(rows)]))
    if problems:
        print("\n".join(["", "PROBLEMS, these were not timed:", *problems]))
        status = status or 1
    save(options.json, rows, problems)
    if options.json is not None:
        print(f"rows: {options.json}")
    if options.plot is not None and rows:
        plot.draw(rows, options.plot)
        print(f"picture: {options.plot}")
    return status


if __name__ == "__main__":
    sys.exit(main())
