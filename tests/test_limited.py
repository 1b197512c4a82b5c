"""Commands with a limit on their time: what they say arrives, and nothing of them stays behind."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import limited

HERE = Path(__file__).parent
ASKED = """
import signal, sys, time
def stop(*_):
    print("stopping"); sys.exit(130)
signal.signal(signal.SIGINT, stop)
print("ready", flush=True)
time.sleep(60)
"""
DEAF = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def run(code: str, seconds: float) -> limited.Done:
    return limited.run([sys.executable, "-S", "-c", code], seconds, HERE, {"GIVEN": "here"})


def test_a_command_that_ends_by_itself() -> None:
    done = run("import os; print(os.environ['GIVEN'], os.getcwd()); print(); raise SystemExit(3)", 60.0)
    assert (done.status, done.late, done.last_line) == (3, False, f"here {HERE}")


def test_a_late_command_may_say_its_last_words() -> None:
    done = run(ASKED, 3.0)
    assert (done.status, done.late, done.output) == (130, True, "ready\nstopping\n")


def test_a_deaf_command_goes_with_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited, "GRACE", 0.2)
    done = run(DEAF, 3.0)
    assert (done.status, done.late) == (-9, True)
    child = int(done.last_line)
    for _ in range(100):
        if not alive(child):
            break
        time.sleep(0.05)
    assert not alive(child)


def test_jobs_run_at_once() -> None:
    """Each waits for the other."""
    together = threading.Barrier(2, timeout=60)
    assert set(limited.at_once({"a": together.wait, "b": together.wait}).values()) == {0, 1}


def test_lines_name_their_jobs(capfd: pytest.CaptureFixture[str]) -> None:
    def one(text: str) -> limited.Done:
        return run(f"print('{text}')", 60.0)

    def two() -> dict[str, limited.Done]:
        return limited.at_once({"in": partial(one, "x"), "out": partial(one, "y")})

    jobs: dict[str, Callable[[], object]] = {"a": two, "b": partial(one, "z")}
    limited.at_once(jobs)
    limited.at_once({"alone": partial(one, "w")})
    assert sorted(capfd.readouterr().out.splitlines()) == ["  a: in: x", "  a: out: y", "  b: z", "  w"]


def test_a_job_that_raises_leaves_the_others_their_time() -> None:
    done = []

    def breaks() -> None:
        raise ValueError("broken")

    def ends() -> None:
        done.append(run("print('ends')", 60.0))

    with pytest.raises(ValueError, match="broken"):
        limited.at_once({"a": breaks, "b": ends})
    assert [ended.output for ended in done] == ["ends\n"]


def test_an_interrupt_ends_the_commands_of_all_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(limited, "_ended", ended)
    done = []

    def interrupted() -> None:
        while not limited._running:
            time.sleep(0.01)
        raise KeyboardInterrupt

    def sleeps() -> None:
        done.append(run("import time; time.sleep(60)", 60.0))

    with pytest.raises(KeyboardInterrupt):
        limited.at_once({"a": interrupted, "b": sleeps})
    assert [(killed.status, killed.late) for killed in done] == [(-9, False)]
    with pytest.raises(KeyboardInterrupt):
        run("print('begun')", 60.0)
    assert not limited._running


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but is not yet collected does not."""
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
