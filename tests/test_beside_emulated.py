"""The comparison of a GPU with the emulated kernels, with both played by the composition."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import beside_emulated
from aim_fast import nvidia
from aim_fast.kernels import tiling
from aim_fast.reference import composition
from beside_emulated import Results, call
from judge import evaluate


def played(plan: str, M: int, D: int, H: int, dtype: torch.dtype) -> Results:
    tensors, dy, options = call(M, D, H, dtype)
    return evaluate(composition, tensors, dy, **options)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A file of results of a device with two plans for each direction, one of them the same."""
    plans = {False: ("hopper/0", "hopper/1"), True: ("hopper/0", "ampere/0")}
    monkeypatch.setattr(nvidia, "cuda_plans", lambda index, D, H, dtype, backward: plans[backward])
    monkeypatch.setattr(nvidia, "gpu", lambda index: tiling.Gpu("played", (9, 0), 99))
    monkeypatch.setattr(beside_emulated, "run", played)
    assert beside_emulated.main(["record", str(tmp_path / "results.pt")]) == 0
    assert capsys.readouterr().out == "18 calls\n"
    return tmp_path / "results.pt"


@pytest.fixture
def imitated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    monkeypatch.setattr(beside_emulated, "imitate", seen.append)
    return seen


def test_equal_results(recorded: Path, imitated: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert beside_emulated.main(["compare", str(recorded)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "18 calls compared, 0 failed, 100.0% to 100.0% of elements equal"
    assert len(lines) == 18
    assert lines[0].startswith("hopper/0 (61, 128, 64) torch.bfloat16: 100.00% of the elements equal, error device ")
    assert imitated == [99]


def test_other_bits_are_counted_and_errors_judged(
    recorded: Path, imitated: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def faulty(plan: str, M: int, D: int, H: int, dtype: torch.dtype) -> Results:
        found = played(plan, M, D, H, dtype)
        if plan == "hopper/1":
            found["y"][0] = torch.nextafter(found["y"][0], torch.zeros_like(found["y"][0]))
        if plan == "ampere/0":
            found["dw2"][3] *= 2
        return found

    monkeypatch.setattr(beside_emulated, "run", faulty)
    assert beside_emulated.main(["compare", str(recorded)]) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert last.startswith("18 calls compared, 6 failed, 9")
    assert all("100.00%" not in line for line in lines if "hopper/1" in line)
    failed = [line for line in lines if line.startswith("FAILED")]
    assert len(failed) == 6
    for line in failed:
        assert line.startswith("FAILED ampere/0")
        assert line.endswith("beyond the budget: dw2 of emulated")


def test_time_and_a_device_without_plans(
    recorded: Path, imitated: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert beside_emulated.main(["compare", str(recorded), "--within", "-1"]) == 0
    assert "18 not begun for want of time" in capsys.readouterr().out
    monkeypatch.setattr(nvidia, "cuda_plans", lambda *arguments: ())
    with pytest.raises(SystemExit, match="have no plan on this device"):
        beside_emulated.main(["record", str(recorded)])
