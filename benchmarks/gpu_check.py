"""Check and measure the package on this machine's NVIDIA GPU, from a plain checkout: `make gpu-check`.

    python3 benchmarks/gpu_check.py                     stage by stage, as far as nine minutes go
    python3 benchmarks/gpu_check.py checks workloads    some, added to the day's results

Runs on the Python that starts it, which has to have torch; installs and downloads nothing. Stages that time nothing run
beside each other, and each line that they print names its stage. Each has a limit of time: one that reaches it says so,
and counts with what it did. Without a GPU the stages of the host run on small cases, and the others say that they were
left out.

Leaves <gpu>-<date>.json and .md in benchmarks/results (build/gpu-check without a GPU). Exit status: 0; 1 when a result
was wrong or a stage failed; 2 when there is no torch.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from functools import partial
from itertools import groupby
from pathlib import Path

import gpu_machine
import gpu_report
import limited
from gpu_machine import ROOT, Machine
from gpu_outcome import LEAST_SECONDS, Outcome
from gpu_stages import STAGES

TOTAL_SECONDS = 520.0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {' '.join(STAGES)} (default: all)")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help=f"for all (default: {TOTAL_SECONDS:.0f})")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="of the results (default: see above)")
    options = parser.parse_args(argv)
    for name in options.stages:
        if name not in STAGES:
            parser.error(f"stage {name} is unknown; expected some of {', '.join(STAGES)}")
    return options


def run(machine: Machine, names: Sequence[str], seconds: float) -> Iterator[dict[str, Outcome]]:
    """The outcomes of one stage after the other, in the table's order, or of several that run beside each other.

    A stage gets its own limit or what is left of `seconds`.
    """
    end = time.monotonic() + seconds

    def outcome(name: str) -> Outcome:
        stage, start = STAGES[name], time.monotonic()
        if stage.needs_gpu and not machine.gpu:
            found = Outcome("left out", "needs an NVIDIA GPU, and torch sees none")
        elif end - start < LEAST_SECONDS:
            found = Outcome("out of time", f"not begun: {seconds:.0f} s were over")
        else:
            try:
                found = stage.run(machine, min(stage.seconds, end - start))
            except Exception as error:  # of the stage itself: the others go on
                traceback.print_exc()
                found = Outcome("failed", f"{type(error).__name__}: {error}")
        found = found.after(time.monotonic() - start)
        print(f"== {name}: {found}", flush=True)
        return found

    for _, group in groupby((name for name in STAGES if name in names), lambda name: STAGES[name].beside or name):
        at_once = list(group)
        print("", *(f"== {name}: {STAGES[name].what}" for name in at_once), sep="\n", flush=True)
        yield limited.at_once({name: partial(outcome, name) for name in at_once})


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    machine = gpu_machine.look()
    if machine is None:
        print(f"gpu-check: {sys.executable} has no working torch; name one that has: make gpu-check PYTHON=...")
        return 2
    folder = options.output or ROOT / ("benchmarks/results" if machine.gpu else "build/gpu-check")
    date = datetime.now(timezone.utc).date().isoformat()
    file = folder / f"{gpu_report.file_name(machine.gpu or 'no gpu')}-{date}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = json.loads(file.read_text()) if file.exists() else {}
    except (OSError, ValueError) as error:
        print(f"gpu-check: {file} cannot be read or written: {error}; move it away, or name a folder with --output")
        return 2
    print(machine)
    outcomes: dict[str, Outcome] = {}
    try:
        for done in run(machine, options.stages or list(STAGES), options.seconds):
            outcomes |= done
    finally:
        results = gpu_report.merged(before, machine, outcomes)
        file.write_text(json.dumps(results, indent=1) + "\n")
        text = gpu_report.markdown(results)
        file.with_suffix(".md").write_text(text)
    print(f"\n{text}\n{file}\n{file.with_suffix('.md')}")
    return int(any(outcome.status == "failed" for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
