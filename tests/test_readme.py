"""The README's Python runs as it stands, one block after the other, and prints what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


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
