"""A command with a limit on its time: asked to stop, then stopped, with all that it started; and several at once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

GRACE = 8.0  # seconds between the question and the end: enough to print a summary and write a file
# What stands before each line of a command's output: whose it is, where several run at once.
_label: ContextVar[str] = ContextVar("label", default="")
_running: set[subprocess.Popen[str]] = set()
_ended = threading.Event()


@dataclass(frozen=True)
class Done:
    """What came of a command: its exit status, negative for a signal; all of its output; whether it ran out of time."""

    status: int
    output: str
    seconds: float
    late: bool

    @property
    def last_line(self) -> str:
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return lines[-1] if lines else "no output"


def run(command: Sequence[str], seconds: float, folder: Path, environment: Mapping[str, str]) -> Done:
    """Run a command in a folder with these variables on top of the present ones, showing its output as it comes.

    After `seconds` it gets the signal of Ctrl-C, after GRACE more it is killed with its whole process group, so that no
    worker of it stays behind.
    """
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    label = _label.get()

    def read() -> None:
        for line in process.stdout or ():
            lines.append(line)
            print(f"  {label}{line}", end="", flush=True)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    late = True
    _running.add(process)
    try:
        if _ended.is_set():
            raise KeyboardInterrupt
        late = not _ends(process, seconds)
        if late:
            process.send_signal(signal.SIGINT)
            _ends(process, GRACE)
    finally:
        if late:
            _end_group(process)
        _running.discard(process)
    # A grandchild that left the group may hold the pipe open; what it would say is not waited for.
    reader.join(2.0)
    return Done(process.returncode, "".join(lines), time.monotonic() - start, late)


def at_once(jobs: Mapping[str, Callable[[], T]]) -> dict[str, T]:
    """What each job returns, all run at once; the lines that their commands print bear their names.

    A job that raises does so here, after the others have returned. Ctrl-C, which only the main thread hears, ends the
    commands of all, and none begins after it.
    """

    def named(name: str, job: Callable[[], T]) -> T:
        if len(jobs) > 1:
            _label.set(f"{_label.get()}{name}: ")
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        begun = {name: pool.submit(copy_context().run, named, name, job) for name, job in jobs.items()}
        try:
            return {name: result.result() for name, result in begun.items()}
        except KeyboardInterrupt:
            _ended.set()
            for process in list(_running):
                _end_group(process)
            raise


def _ends(process: subprocess.Popen[str], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end_group(process: subprocess.Popen[str]) -> None:
    # The group bears the leader's number and lives on with any of its members.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
