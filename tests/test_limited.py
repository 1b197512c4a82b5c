"""Commands with a limit on their time: what they say arrives, and nothing of them stays behind."""

from __future__ import annotations

import os
import sys
import time
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


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but is not yet collected does not."""
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
