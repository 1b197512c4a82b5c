"""Shows that the suite catches faults: plants those of mutations.py one by one in a copy and runs its tests.

    python tests/mutate.py              all of them
    python tests/mutate.py NAME ...     those whose names contain one of the words
    python tests/mutate.py --jobs 2     in so many copies at once
    python tests/mutate.py --list

Each has to be caught: the tests it names pass without it and fail with it. Exits 1 when one is missed, when its text is
not found exactly once, or when it does not compile. The tree itself is never touched.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(".*", "build", "__pycache__", "*.so", "*.egg-info", "results")
SECONDS = 1200  # for one build or one run of tests
# Instances of the CUDA kernels in which a fault is planted, as AIM_FAST_EMULATE has it: all take minutes to compile,
# and most faults show in those of one type and width. Not all: of a function that all have, the linker takes the first.
A_FEW, ALL = "bf16_192", "1"
ISA = "isa"  # as AIM_FAST_EMULATE has it: the CPU's kernels for every instruction set


class CannotPlantError(Exception):
    """The mutation says nothing about the tests: it does not fit the code, or does not compile."""


def run(command: list[str], tree: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """command in the copy, first on the path of Python; nothing compiled is kept, so that no change is missed.

    more: variables for its environment.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIM_FAST_")}
    environment |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "AIM_FAST_BUILD": "require"}
    environment["CXXFLAGS"] = "-O1 -fexpensive-optimizations -w"  # quick to compile, yet with fused multiply-adds
    environment |= more
    return subprocess.run(
        command, cwd=tree, env=environment, timeout=SECONDS, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def build(tree: Path, emulate: str = "") -> None:
    """The library of the CPU's kernels, or one of emulated kernels; what nvcc makes is not tested here."""
    which = {"AIM_FAST_EMULATE": emulate} if emulate else {"AIM_FAST_CUDA_ARCHS": ""}
    done = run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], tree, **which)
    if done.returncode:
        raise CannotPlantError(f"does not compile:\n{done.stdout[-3000:]}")


def failing_test(tests: tuple[str, ...], tree: Path, emulate: str = ALL) -> str | None:
    """The first test that fails, "crash" or "hang"; None if all pass. emulate: as the library was built."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", *tests]
    more = {"AIM_FAST_EMULATE": emulate}
    if emulate == ISA:
        more = {"AIM_FAST_LIBRARY": str(tree / "build" / "isa" / "libaim_fast.so")}
    try:
        done = run(command, tree, **more)
    except subprocess.TimeoutExpired:
        return "hang"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return "crash"
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or not found:
        raise CannotPlantError(f"pytest {' '.join(tests)} did not run:\n{done.stdout[-3000:]}")
    return found[1]


def plant(mutation: Mutation, tree: Path) -> str | None:
    """What failing_test says with the mutation in the copy, which is as before afterwards."""
    file = tree / mutation.file
    before = file.read_text()
    count = before.count(mutation.old)
    if count != 1:
        raise CannotPlantError(f"its text is found {count} times in {mutation.file}, not once")
    file.write_text(before.replace(mutation.old, mutation.new))
    instances = ""
    try:
        for instances in (A_FEW, ALL) if mutation.emulated else (ISA if mutation.needs else "",):
            if mutation.compiled:
                build(tree, instances)
            if found := failing_test(mutation.tests, tree, instances or ALL):
                return found
        return None
    finally:
        file.write_text(before)
        if instances == ALL:  # else the next one, tried in a few instances, would find this one in the others
            build(tree, ALL)


def check_unplanted(mutations: list[Mutation], tree: Path) -> None:
    """The tests pass in the copy as it is, and it is the copy that they import."""
    where = run([sys.executable, "-c", "import aim_fast; print(aim_fast.__file__)"], tree).stdout.strip()
    if Path(where) != tree / "aim_fast" / "__init__.py":
        raise SystemExit(f"the copy is not what is imported, but {where}")
    if any(mutation.needs for mutation in mutations):
        build(tree, ISA)
    for tests, emulate in dict.fromkeys((mutation.tests, ISA if mutation.needs else ALL) for mutation in mutations):
        if failing := failing_test(tests, tree, emulate):
            raise SystemExit(f"{' '.join(tests)} fails without any mutation: {failing}")


def judge(mutation: Mutation, tree: Path) -> tuple[bool, str]:
    """Whether it is as it should be, and the verdict."""
    try:
        by = plant(mutation, tree)
    except CannotPlantError as error:
        return False, f"ERROR, {error}"
    return by is not None, f"caught by {by}" if by else "MISSED"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="words that the names contain")
    parser.add_argument("--list", action="store_true", help="list the mutations and stop")
    parser.add_argument("--jobs", type=int, default=1, help="copies in which mutations are planted at once")
    arguments = parser.parse_args()
    # Python's first: a mutation of the kernels leaves the library to be built again.
    chosen = sorted(
        (m for m in MUTATIONS if not arguments.names or any(word in m.name for word in arguments.names)),
        key=lambda m: (m.compiled, m.emulated),
    )
    if arguments.list or not chosen:
        print("\n".join(f"{m.name:32} {m.file}" for m in chosen) or "no such mutation")
        return not chosen
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        first = Path(folder).resolve() / "0"
        shutil.copytree(ROOT, first, ignore=LEFT_OUT)
        print(f"{len(chosen)} mutations; building the copy and running their tests without any", flush=True)
        build(first)
        check_unplanted(chosen, first)
        free: SimpleQueue[Path] = SimpleQueue()
        free.put(first)
        for i in range(1, arguments.jobs):
            free.put(shutil.copytree(first, first.with_name(str(i))))

        def in_a_copy(mutation: Mutation) -> bool:
            tree = free.get()
            start = time.monotonic()
            try:
                good, verdict = judge(mutation, tree)
            finally:
                free.put(tree)  # else who waits for it would wait for ever
            print(f"{mutation.name:32} {time.monotonic() - start:5.1f} s  {verdict}", flush=True)
            return good

        bad = [m.name for m, good in zip(chosen, pool.map(in_a_copy, chosen), strict=True) if not good]
    print(f"{len(chosen) - len(bad)} of {len(chosen)} as they should be", *bad)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
