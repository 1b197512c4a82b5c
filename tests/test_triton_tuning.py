"""The table of measurements: written, read, ignored with a reason, and what follows from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from aim_fast import nvidia, triton_device, tune, tuning
from aim_fast.kernels import estimate, tiling
from aim_fast.kernels.estimate import Case
from aim_fast.kernels.tiling import Gpu
from aim_fast.tune import Shape

GPU = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132)
SHAPE = Shape("half", 12608, 768, 192)
CASE = Case(12608, 768, 192, "half", 2, 2, 2, 2, skip=True)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own, and nothing read before."""
    monkeypatch.setenv("AIM_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path / "none")
    monkeypatch.setattr(tuning, "_tables", {})
    tuning.advice.cache_clear()
    triton_device.plan.cache_clear()
    nvidia.cuda_plan.cache_clear()
    return tmp_path / "cache"


CUDA = {"forward": ("hopper/0", "hopper/1", "ampere/0"), "backward": ("hopper/0", "ampere/0")}


def options(shape: Shape, backend: str) -> Mapping[str, Sequence[Any]]:
    """Those of an H100 whose library has some plans for widths up to 320."""
    if backend == "triton":
        return {kernel: tiling.plans(GPU, kernel, *shape, 2)[:4] for kernel in tiling.KERNELS}
    return CUDA if shape.H <= 320 else dict.fromkeys(CUDA, ())


def last_is_best(shape: Shape, backend: str, plans: tune.Plans) -> tuple[float, float]:
    """Seconds: eager 1 and 3; the others the less the later their plans come among the candidates, CUDA the least."""
    if backend == "eager":
        return 1.0, 3.0
    ranks = [options(shape, backend)[kernel].index(plan) for kernel, plan in plans.items()]
    less = 0.3 if backend == "cuda" else 0.0
    return 0.9 - less - ranks[0] / 10, 2.9 - less - sum(ranks) / 10


def rows() -> tuning.Rows:
    return tune.search_all([SHAPE, SHAPE._replace(M=200)], options, last_is_best)


def timed(**times: float) -> tuning.Rows:
    """`rows` with these microseconds of a forward and, twice as many, of a train step."""
    forward, train = ({name: turns * us * 1e-6 for name, us in times.items()} for turns in (1, 2))
    return {key: [row._replace(forward=forward, train=train) for row in found] for key, found in rows().items()}


def test_search_finds_the_fastest_plans(capsys: pytest.CaptureFixture[str]) -> None:
    row = tune.search(SHAPE, options, last_is_best)
    assert row is not None
    for kernel in tiling.KERNELS:
        assert row.plans[kernel] == tiling.plans(GPU, kernel, *SHAPE, 2)[:4][-1]
    assert row.cuda == {"forward": "ampere/0", "backward": "ampere/0"}
    for backend, plans in (("triton", row.plans), ("cuda", row.cuda), ("eager", {})):
        assert (row.forward[backend], row.train[backend]) == last_is_best(SHAPE, backend, plans)
    assert tune.search(SHAPE._replace(H=600), options, last_is_best) is None
    assert len(rows()["half", 768, 192]) == 2
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(("gain", "taken"), [(0.01, ""), (0.03, "hopper/1")])
def test_noise_chooses_no_plan(gain: float, taken: str) -> None:
    """A later plan has to be clearly faster than the one that holds."""

    def measure(shape: Shape, backend: str, plans: tune.Plans) -> tuple[float, float]:
        return 1 - gain * (plans["forward"] == "hopper/1"), 3 * (1 - gain * (plans["backward"] == "hopper/1"))

    found = dict.fromkeys(CUDA, ("", "hopper/0", "hopper/1"))
    assert tune.fastest(SHAPE, "cuda", found, measure)[0] == dict.fromkeys(CUDA, taken)


def test_search_leaves_out_what_is_not_there() -> None:
    wide = tune.search(SHAPE._replace(H=512), options, last_is_best)
    assert wide is not None
    assert (wide.cuda, set(wide.train)) == ({}, {"triton", "eager"})
    alone = tune.search(SHAPE, lambda shape, backend: CUDA if backend == "cuda" else {}, last_is_best)
    assert alone is not None
    assert (alone.plans, set(alone.train)) == ({}, {"cuda", "eager"})
    found = tuning.Table({("half", 768, 192): [alone], ("half", 768, 512): [wide]})
    assert tuning.from_json(GPU, tuning.to_json(GPU, found.rows, {})) == found
    tuning.save(GPU, found.rows, {})
    # Without a measurement of its own Triton goes by its table, and by the estimate.
    assert tuning.plan(GPU, "fwd", *SHAPE, 1) == tiling.plans(GPU, "fwd", *SHAPE)[0]
    assert "estimated" in tuning.advice(GPU, CASE, True, "triton")[1]


def test_round_trip(folder: Path) -> None:
    file = tuning.save(GPU, rows(), {"date": "today"})
    assert file.parent == folder
    assert [path.name for path in folder.iterdir()] == ["tune-nvidia-h100-80gb-hbm3.json"]
    tuning._tables.clear()
    assert tuning.table(GPU) == tuning.Table(rows(), date="today")


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
    choose, text = tuning.advice(GPU, CASE, False, "triton")
    assert choose
    assert "estimated from counted bytes and FLOP, not measured" in text
    assert "M = 12608, D = 768, H = 192 on NVIDIA H100" in text
    choose, text = tuning.advice(GPU, CASE._replace(M=7), False, "triton")
    assert not choose
    assert text.startswith("triton: not worth it at M = 7")
    slow = {
        key: [row._replace(train={name: 3e-5 if name == "eager" else 2e-5 for name in row.train}) for row in found]
        for key, found in timed(triton=20, cuda=40, eager=10).items()
    }
    tuning.save(GPU, slow, {})
    choose, text = tuning.advice(GPU, CASE, False, "triton")
    assert not choose
    assert "20 us against cuda's 40 us and eager's 10 us for a forward, measured on this GPU at M = 12608" in text
    assert tuning.advice(GPU, CASE, True, "triton")[0]


def test_cuda_is_never_chosen_unmeasured() -> None:
    words = "cuda: never measured on this GPU at M = 12608, D = 768, H = 192 on NVIDIA H100"
    choose, text = tuning.advice(GPU, CASE, True, "cuda")
    assert not choose
    assert text.startswith(words)
    assert text.endswith("use_backend('cuda') or python -m aim_fast tune")
    tuning.save(GPU, timed(triton=20, cuda=10, eager=30), {})
    for other in (CASE._replace(M=60000), CASE._replace(load="amp"), CASE._replace(H=256)):
        assert not tuning.advice(GPU, other, True, "cuda")[0]


@pytest.mark.parametrize(
    ("times", "fastest"),
    [
        ({"cuda": 10, "triton": 20, "eager": 30}, "cuda"),
        ({"cuda": 20, "triton": 10, "eager": 30}, "triton"),
        ({"cuda": 20, "triton": 30, "eager": 10}, None),
        # By a tenth of the device, where a call takes the host longer; and no further.
        ({"cuda": 30, "triton": 30, "eager": 30}, "cuda"),
        ({"cuda": 32.9, "triton": 40, "eager": 30}, "cuda"),
        ({"cuda": 33.1, "triton": 40, "eager": 30}, None),
        ({"cuda": 32.9, "triton": 28, "eager": 30}, "triton"),
        ({"cuda": 36, "triton": 40, "eager": 35}, None),
    ],
)
def test_the_fastest_of_the_three_is_chosen(times: dict[str, float], fastest: str | None) -> None:
    tuning.save(GPU, timed(**times), {})
    chosen = [backend for backend in ("cuda", "triton") if tuning.advice(GPU, CASE, False, backend)[0]]
    assert next(iter(chosen), None) == fastest
    for backend in ("cuda", "triton"):
        rivals = " and ".join(f"{name}'s {us:.0f} us" for name, us in sorted(times.items()) if name != backend)
        assert (
            f"{times[backend]:.0f} us against {rivals} for a forward, measured on this GPU at M = 12608"
            in (tuning.advice(GPU, CASE, False, backend)[1])
        )


def test_cuda_runs_by_the_plan_that_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was measured; and only if the library still has it."""
    monkeypatch.setattr(nvidia, "gpu", lambda index: GPU)
    monkeypatch.setattr(nvidia, "cuda_plans", lambda index, D, H, dtype, backward: CUDA["forward"][: 3 - backward])

    def plans(M: int) -> list[str]:
        nvidia.cuda_plan.cache_clear()
        return [nvidia.cuda_plan(0, "half", torch.bfloat16, M, 768, 192, backward) for backward in (False, True)]

    assert plans(12608) == ["", ""]
    tuning.save(GPU, rows(), {})
    assert plans(12608) == ["ampere/0", ""]
    (found,) = rows()["half", 768, 192][:1]
    by_rule = {("half", 768, 192): [found._replace(cuda={"forward": "ampere", "backward": ""})]}
    assert tuning.from_json(GPU, tuning.to_json(GPU, by_rule, {})).rows == by_rule
    tuning.save(GPU, by_rule, {})
    assert plans(12608) == ["ampere", ""]
    tuning.save(GPU, rows(), {})
    assert plans(60000) == ["", ""]
    nvidia.cuda_plan.cache_clear()


def test_measuring_runs_by_the_plans_that_it_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "gpu", lambda index: GPU)
    monkeypatch.setattr(nvidia, "cuda_plans", lambda *arguments: CUDA["forward"])
    for plan in CUDA["forward"]:
        tune.use_plans(GPU, SHAPE, "cuda", {"forward": plan, "backward": "hopper/0"})
        assert nvidia.cuda_plan(0, "half", torch.bfloat16, 12608, 768, 192, False) == plan
        assert nvidia.cuda_plan(0, "half", torch.bfloat16, 12608, 768, 192, True) == "hopper/0"
    for how in tiling.plans(GPU, "fwd", *SHAPE)[:4]:
        tune.use_plans(GPU, SHAPE, "triton", dict.fromkeys(tiling.KERNELS, how))
        assert tuning.plan(GPU, "fwd", *SHAPE, 1) == how
        assert nvidia.cuda_plan(0, "half", torch.bfloat16, 12608, 768, 192, False) == ""
    nvidia.cuda_plan.cache_clear()


def edited(change: Callable[[Any], Any]) -> str:
    data = json.loads(tuning.to_json(GPU, rows(), {}))
    change(data)
    return json.dumps(data)


BROKEN = {
    "empty": lambda: "",
    "no_json": lambda: "{'half':",
    "not_a_table": lambda: "[1, 2]",
    "nested": lambda: "[" * 100000,
    "old": lambda: edited(lambda data: data.update(format=tuning.FORMAT - 1)),
    "other_gpu": lambda: edited(lambda data: data["gpu"].update(name="NVIDIA A100-SXM4-80GB")),
    "other_size": lambda: edited(lambda data: data["gpu"].update(sms=114)),
    "no_rows": lambda: edited(lambda data: data.pop("rows")),
    "unknown_tile": lambda: edited(lambda data: data["rows"][0]["plans"]["fwd"][0].__setitem__(1, 4096)),
    "wrong_parts": lambda: edited(lambda data: data["rows"][0]["plans"]["fwd"].__setitem__(1, [64, 64, 64, 64])),
    "split_of_zero": lambda: edited(lambda data: data["rows"][0]["plans"]["dx"].__setitem__(2, 0)),
    "split_of_a_word": lambda: edited(lambda data: data["rows"][0]["plans"]["dw"].__setitem__(2, "8")),
    "no_time": lambda: edited(lambda data: data["rows"][1]["forward"].update(triton=0)),
    "not_a_number": lambda: edited(
        lambda data: data["rows"][1].update(train={"cuda": float("nan"), "triton": 1, "eager": 1})
    ),
    "a_time_too_few": lambda: edited(lambda data: data["rows"][1]["train"].pop("cuda")),
    "a_time_too_many": lambda: edited(lambda data: data["rows"][1].update(cuda={})),
    "unknown_cuda_plan": lambda: edited(lambda data: data["rows"][0]["cuda"].update(forward="volta/0")),
    "cuda_plan_of_a_number": lambda: edited(lambda data: data["rows"][0]["cuda"].update(backward=3)),
    "no_backward": lambda: edited(lambda data: data["rows"][0]["cuda"].pop("backward")),
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
    assert table.reason in tuning.advice(GPU, CASE, True, "triton")[1]
    assert table.reason in tuning.advice(GPU, CASE, True, "cuda")[1]


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
    said = capsys.readouterr().err
    assert "nothing to tune: " in said
    assert "built without CUDA" in said
    assert not folder.exists()


def test_estimates_and_measurements_speak_of_the_same_loads() -> None:
    """Every shape that the command measures has tiles."""
    for load in ("half", "amp", "ieee"):
        for D, H in tune.SHAPES:
            case = Case(1000, D, H, load, 2, 2, 2, 2)
            assert estimate.best_plan(GPU, "fwd", case) is not None


def test_times_lie_between_two_measurements() -> None:
    """On a power of M, so that neither end speaks for all rows up to the middle; further away one speaks alone."""
    (row,) = timed(cuda=40.0, eager=30.0)["half", 768, 192][:1]
    later = row._replace(M=4 * row.M, forward={"cuda": 80e-6, "eager": 120e-6})
    far = row._replace(M=20 * row.M)
    tuning.save(GPU, {("half", 768, 192): [row, later, far]}, {})

    def times(M: int) -> tuple[dict[str, float], str]:
        found, at = tuning.timed(GPU, "half", M, 768, 192, False)
        return {name: round(1e6 * seconds, 3) for name, seconds in found.items()}, at

    assert times(row.M) == ({"cuda": 40.0, "eager": 30.0}, f"M = {row.M}")
    assert times(2 * row.M) == ({"cuda": 56.569, "eager": 60.0}, f"M = {row.M} and {later.M}")
    assert times(12 * row.M) == ({"cuda": 40.0, "eager": 30.0}, f"M = {far.M}")
    assert times(8 * row.M) == ({"cuda": 80.0, "eager": 120.0}, f"M = {later.M}")
    assert times(row.M // 3) == ({}, "")
    assert tuning.advice(GPU, CASE._replace(M=2 * row.M), False, "cuda")[0]  # the nearest alone would have said eager
