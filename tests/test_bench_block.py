"""The block's benchmark as a tool: what it measures, and what it refuses to time. No timings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import bench_block
from aim_vit import Block

SMALL = ["--clips=2", "--frames=2", "--size=32", "--width=64", "--depth=1", "--seconds=0.01"]


def test_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    assert bench_block.main([*SMALL, "--quick", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    labels = [(row["dtype"], row["what"], row["pass"]) for row in rows]
    assert labels == [(d, w, k) for d in ("fp32", "bf16") for w in ("block", "model") for k in ("forward", "train")]
    for row in rows:
        assert set(row["us"]) == set(row["peak_mib"]) == {"plain", "patched", "fused"}
        assert row["speedup"]["plain"] == 1.0
        assert all(value > 0 for value in (*row["us"].values(), *row["peak_mib"].values()))
        assert all(error["ok"] and error["eager_error"] > 0 for error in row["errors"].values())
        if row["pass"] == "train":
            assert row["saved_mib"]["fused"] <= row["saved_mib"]["patched"] < row["saved_mib"]["plain"]
        assert (row["clips"], row["frames"], row["depth"]) == (2, 2, 1)
    text = capsys.readouterr().out.splitlines()
    assert len([line for line in text if line.split()[:1] in (["block"], ["model"])]) == len(rows)


@pytest.mark.parametrize("what", ["block", "model"])
def test_refuses_to_time_a_wrong_block(what: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    right = Block.forward

    def wrong(block: Block, x: Tensor) -> Tensor:
        return right(block, x) + 1e-3 * x

    def timed(*_: Any) -> None:
        raise AssertionError("a wrong block was timed")

    monkeypatch.setattr(Block, "forward", wrong)
    monkeypatch.setattr(bench_block.harness, "interleave", timed)
    assert bench_block.main([*SMALL, "--what", what, "--dtypes", "fp32"]) == 1
    assert f"{what} fp32: fused is wrong, not timed" in capsys.readouterr().out


def test_bad_sizes_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for argument in ("--width=65", "--frames=0", "--size=30"):
        with pytest.raises(SystemExit):
            bench_block.main([argument])
        assert "expected numbers from 1, a width that is a multiple of 64" in capsys.readouterr().err
