"""The README's Python runs as it stands, one block after the other, and prints what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import aim_fast

README = Path(__file__).resolve().parent.parent / "README.md"
TEXT = README.read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_snippets_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is a comment is a line of the block's output."""
    monkeypatch.chdir(README.parent)
    monkeypatch.syspath_prepend("examples")
    assert len(BLOCKS) >= 4
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), names)
        expected = [line.removeprefix("# ") for line in block.splitlines() if line.startswith("# ")]
        printed = capsys.readouterr().out.splitlines()
        assert not expected or printed == expected
    assert any("# " in block and "patch" in block for block in BLOCKS)
    assert all(p.grad is not None for p in names["video_model"].parameters() if p.requires_grad)


def test_settings_name_what_there_is() -> None:
    """Each once: a table that was merged by halves names some twice."""
    rows = {row.split("`")[1]: row for row in TEXT.splitlines() if row.startswith("| `AIM_FAST_")}
    assert len(rows) == sum(line.startswith("| `AIM_FAST_") for line in TEXT.splitlines())
    assert all(f"`{backend.name}`" in rows["AIM_FAST_BACKEND"] for backend in aim_fast.backends())
    if aim_fast.backends()[0].available:
        assert all(f"`{isa}`" in rows["AIM_FAST_CPU_ISA"] for isa in torch.ops.aim_fast.cpu_isas().split(","))
