"""The table of measurements: written, read, ignored with a reason, and what follows from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from aim_fast import triton_device, tune, tuning
from aim_fast.kernels import estimate, tiling
from aim_fast.kernels.estimate import Case
from aim_fast.kernels.tiling import Gpu, Plan
from aim_fast.tune import Shape

GPU = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132)
SHAPE = Shape("half", 12608, 768, 192)
CASE = Case(12608, 768, 192, "half", 2, 2, 2, 2)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own, and nothing read before."""
    monkeypatch.setenv("AIM_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "_tables", {})
    tuning.advice.cache_clear()
    triton_device.plan.cache_clear()
    return tmp_path / "cache"


def last_is_best(shape: Shape, plans: Mapping[str, Plan] | None) -> tuple[float, float]:
    """Seconds: eager 1 and 3; fused the less the later its plans come among the candidates."""
    if plans is None:
        return 1.0, 3.0
    ranks = [tiling.plans(GPU, kernel, *shape, 2)[:4].index(plans[kernel]) for kernel in tiling.KERNELS]
    return 0.9 - ranks[0] / 10, 2.9 - sum(ranks) / 10


def rows() -> tuning.Rows:
    return tune.search_all(GPU, [SHAPE, SHAPE._replace(M=200)], last_is_best)


def test_search_finds_the_fastest_plans(capsys: pytest.CaptureFixture[str]) -> None:
    row = tune.search(GPU, SHAPE, last_is_best)
    assert row is not None
    for kernel in tiling.KERNELS:
        assert row.plans[kernel] == tiling.plans(GPU, kernel, *SHAPE, 2)[:4][-1]
    fused, eager = row.train
    assert (fused, eager) == (last_is_best(SHAPE, row.plans)[1], 3.0)
    assert tune.search(GPU, SHAPE._replace(H=600), last_is_best) is None
    assert len(rows()["half", 768, 192]) == 2
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_round_trip(folder: Path) -> None:
    file = tuning.save(GPU, rows(), {"date": "today"})
    assert file.parent == folder
    assert [path.name for path in folder.iterdir()] == ["tune-nvidia-h100-80gb-hbm3.json"]
    tuning._tables.clear()
    assert tuning.table(GPU) == tuning.Table(rows())


def test_a_measurement_decides_on_plans_near_it() -> None:
    tuned = rows()["half", 768, 192][0]
    before = tuning.plan(GPU, "fwd", "half", 12608, 768, 192, 1)
    tuning.save(GPU, rows(), {})
    assert tuned.plans["fwd"] != before
    for M, expected in ((12608, tuned.plans["fwd"]), (20000, tuned.plans["fwd"]), (60000, None), (3000, None)):
        first = tiling.plans(GPU, "fwd", "half", M, 768, 192)[0]
        assert tuning.plan(GPU, "fwd", "half", M, 768, 192, 1) == (expected or first)
    assert tuning.plan(GPU, "fwd", "amp", 12608, 768, 192, 1) == tiling.plans(GPU, "fwd", "amp", 12608, 768, 192)[0]


def test_advice_says_what_it_rests_on() -> None:
    choose, text = tuning.advice(GPU, CASE, False)
    assert choose
    assert "estimated from counted bytes and FLOP, not measured" in text
    assert "M = 12608, D = 768, H = 192 on NVIDIA H100" in text
    choose, text = tuning.advice(GPU, CASE._replace(M=7), False)
    assert not choose
    assert text.startswith("triton: not worth it at M = 7")
    slow = {
        key: [row._replace(forward=(2e-5, 1e-5), train=(2e-5, 3e-5)) for row in found] for key, found in rows().items()
    }
    tuning.save(GPU, slow, {})
    choose, text = tuning.advice(GPU, CASE, False)
    assert not choose
    assert "20 us against eager's 10 us for a forward, measured on this GPU at M = 12608" in text
    assert tuning.advice(GPU, CASE, True)[0]


def edited(change: Callable[[Any], Any]) -> str:
    data = json.loads(tuning.to_json(GPU, rows(), {}))
    change(data)
    return json.dumps(data)


BROKEN = {
    "empty": lambda: "",
    "no_json": lambda: "{'half':",
    "not_a_table": lambda: "[1, 2]",
    "nested": lambda: "[" * 100000,
    "old": lambda: edited(lambda data: data.update(format=0)),
    "other_gpu": lambda: edited(lambda data: data["gpu"].update(name="NVIDIA A100-SXM4-80GB")),
    "other_size": lambda: edited(lambda data: data["gpu"].update(sms=114)),
    "no_rows": lambda: edited(lambda data: data.pop("rows")),
    "unknown_tile": lambda: edited(lambda data: data["rows"][0]["plans"]["fwd"][0].__setitem__(1, 4096)),
    "wrong_parts": lambda: edited(lambda data: data["rows"][0]["plans"]["fwd"].__setitem__(1, [64, 64, 64, 64])),
    "split_of_zero": lambda: edited(lambda data: data["rows"][0]["plans"]["dx"].__setitem__(2, 0)),
    "split_of_a_word": lambda: edited(lambda data: data["rows"][0]["plans"]["dw"].__setitem__(2, "8")),
    "no_time": lambda: edited(lambda data: data["rows"][1].update(forward=[0, 1])),
    "not_a_number": lambda: edited(lambda data: data["rows"][1].update(train=[float("nan"), 1])),
    "no_row_count": lambda: edited(lambda data: data["rows"][1].update(M=0)),
    "unknown_load": lambda: edited(lambda data: data["rows"][1].update(load="int8")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_bad_file_is_ignored_with_a_reason(name: str, folder: Path) -> None:
    file = tuning.path(GPU)
    folder.mkdir()
    file.write_text(BROKEN[name]())
    table = tuning.table(GPU)
    assert table.rows == {}
    assert table.reason.startswith(f"{file} was ignored: ")
    assert tuning.plan(GPU, "fwd", "half", 12608, 768, 192, 1) == tiling.plans(GPU, "fwd", "half", 12608, 768, 192)[0]
    assert table.reason in tuning.advice(GPU, CASE, True)[1]


@pytest.mark.parametrize("how", ["folder", "bytes"])
def test_a_file_that_cannot_be_read(how: str, folder: Path) -> None:
    folder.mkdir()
    if how == "folder":
        tuning.path(GPU).mkdir()
    else:
        tuning.path(GPU).write_bytes(b"\xff\xfe\x00")
    assert "was ignored" in tuning.table(GPU).reason


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AIM_FAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tuning.path(GPU).parent == tmp_path / "aim_fast"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tuning.path(GPU).parent == tmp_path / ".cache" / "aim_fast"


def test_the_command_without_a_gpu(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert tune.main([]) == 1
    assert "nothing to tune: torch " in capsys.readouterr().err
    assert not folder.exists()


def test_estimates_and_measurements_speak_of_the_same_loads() -> None:
    """Every shape that the command measures has tiles."""
    for load in ("half", "amp", "ieee"):
        for D, H in tune.SHAPES:
            case = Case(1000, D, H, load, 2, 2, 2, 2)
            assert estimate.best_plan(GPU, "fwd", case) is not None
