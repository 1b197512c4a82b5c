"""`python -m aim_fast tune` on a GPU that is played: what it measures and leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aim_fast import triton_device, tune, tuning
from aim_fast.kernels import tiling
from aim_fast.kernels.tiling import Gpu
from aim_fast.testing import make_inputs
from aim_fast.tune import Shape
from played_gpu import play

H200 = Gpu("NVIDIA H200", (9, 0), 132)


def options(shape: Shape, backend: str, each_plan: bool) -> Mapping[str, Sequence[Any]]:
    """One plan a kernel; none of the CUDA kernels for a wide H."""
    if backend == "triton":
        return {kernel: tiling.plans(H200, kernel, *shape, 2)[:1] for kernel in tiling.KERNELS}
    return dict.fromkeys(tuning.DIRECTIONS, ("hopper/0" if each_plan else "",)) if shape.H <= 320 else {}


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> set[str]:
    """An H200, an empty cache folder, and the backends that are there."""
    names = {"cpu", "cuda", "triton", "eager"}
    monkeypatch.setenv("AIM_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path / "none")
    monkeypatch.setattr(tuning, "_tables", {})
    tuning.advice.cache_clear()

    def backends() -> list[Any]:
        order = ("cpu", "cuda", "triton", "eager")
        return [SimpleNamespace(name=name, available=name in names, reason=f"no {name}") for name in order]

    monkeypatch.setattr("aim_fast.backends", backends)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(triton_device, "gpu", lambda index: H200)
    monkeypatch.setattr(tune, "options_on_gpu", options)
    monkeypatch.setattr(tune, "on_gpu", lambda shape, backend, plans: (1.0, 2.0))
    return names


@pytest.mark.parametrize(
    ("arguments", "measured"),
    [
        ([], {("cuda", "triton", "eager"): 21, ("triton", "eager"): 3}),
        (["--backends", "cuda", "--loads", "half"], {("cuda", "eager"): 7}),
        (["--backends", "triton", "--loads", "amp", "--shapes", "768x192", "8x8"], {("triton", "eager"): 2}),
        (["--backends", "cuda", "--shapes", "1024x512"], {}),
        (["--backends", "cuda", "--loads", "ieee", "--rules"], {("cuda", "eager"): 7}),
    ],
    ids=["all", "cuda", "shapes", "none", "rules"],
)
def test_it_measures_what_was_asked_for(
    arguments: list[str], measured: dict[tuple[str, ...], int], there: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """And leaves a table that can be read, or the reason why there is none."""
    assert tune.main(arguments) == (0 if measured else 1)
    tuning._tables.clear()
    found = tuning.table(H200)
    assert found.reason == ""
    assert Counter(tuple(rows[0].train) for rows in found.rows.values()) == measured
    for (load, _, _), rows in found.rows.items():
        assert [row.M for row in rows] == list(tune.ROWS[load])
        assert all({*row.cuda.values()} <= {"" if "--rules" in arguments else "hopper/0"} for row in rows)
    assert tuning.path(H200).exists() == bool(found.date) == bool(measured)
    assert ("cuda take none of these shapes" in capsys.readouterr().err) == (not measured)


def test_a_backend_that_is_not_there(there: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    there.remove("triton")
    assert tune.main(["--backends", "triton"]) == 1
    assert capsys.readouterr().err == "nothing to tune: triton: no triton\n"
    assert tune.main(["--shapes", "768x192"]) == 0


@pytest.mark.parametrize("wrong", ["768", "768x0", "768x192x1", "wide"])
def test_a_shape_is_two_numbers(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tune.main(["--shapes", wrong])
    assert f"argument --shapes: invalid widths value: '{wrong}'" in capsys.readouterr().err


def device_us(monkeypatch: pytest.MonkeyPatch, host: float, device: float = 0.028, late: int = 0) -> float:
    """What `tune` makes of a call, milliseconds of host and device; before each, L2 is read for 45 us.

    late: every so many calls the host takes ten times as long.
    """
    gpu, done = play(monkeypatch), 0
    size = tune._FLUSHES * (50 << 20)
    monkeypatch.setattr(tune, "_flush", lambda: SimpleNamespace(sum=lambda: gpu.launch(0.045, 0.01), nbytes=size))

    def call() -> None:
        nonlocal done
        done += 1
        gpu.launch(device, 10 * host if late and done % late == 0 else host)

    return tune.device_seconds(call) * 1e6


@pytest.mark.parametrize("host", [0.01, 0.1, 0.5, 5.0])
def test_time_is_the_device_s_alone(host: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the host takes, and whatever was done to make L2 cold."""
    assert device_us(monkeypatch, host) == pytest.approx(28.0)
    assert device_us(monkeypatch, host, late=7) == pytest.approx(28.0)


def test_plans_are_told_apart_where_the_host_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(shape: Shape, backend: str, plans: tune.Plans) -> tuple[float, float]:
        slow = "ampere" in "".join(plans.values())
        return device_us(monkeypatch, 0.1, 0.082 if slow else 0.028), device_us(monkeypatch, 0.5, 0.2)

    found = {"forward": ["ampere", "", "hopper/1"], "backward": ["", "ampere"]}
    best, times = tune.fastest(Shape("half", 12800, 768, 192), "cuda", found, measure)
    assert best == {"forward": "", "backward": ""}
    assert times == pytest.approx((28.0, 200.0))


@pytest.mark.parametrize(("each_plan", "seconds"), [(True, 70), (False, 30)])
def test_the_command_ends_in_time(each_plan: bool, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a host of 100 us a forward and 500 a train step and every choice that an H100 has, by the played clock."""
    gpu = play(monkeypatch)
    monkeypatch.setattr(tune, "_flush", lambda: SimpleNamespace(sum=lambda: gpu.launch(0.045, 0.01)))
    families = {"hopper": 4, "ampere": 7, "tiles": 3}
    plans = [f"{family}/{i}" for family, count in families.items() for i in range(count)]
    choices = tune.cuda_options(plans, each_plan)

    def measure(shape: Shape, backend: str, plans: tune.Plans) -> tuple[float, float]:
        bytes_ = shape.M * shape.D * (2 if shape.load == "half" else 4)
        forward = 2 * bytes_ / 2e12 * 1e3 + 0.01  # milliseconds
        return tune.device_seconds(lambda: gpu.launch(forward, 0.1)), tune.device_seconds(
            lambda: gpu.launch(5 * forward, 0.5)
        )

    shapes = [Shape(load, M, D, H) for load in ("half", "amp") for D, H in tune.SHAPES for M in tune.ROWS[load]]
    found = {"cuda": dict.fromkeys(tuning.DIRECTIONS, choices), "triton": {}}
    rows = tune.search_all(shapes, lambda shape, backend: found[backend], measure)
    assert sum(map(len, rows.values())) == 160
    assert gpu.host / 1e3 < seconds


def test_choices_of_the_cuda_kernels() -> None:
    """The rule's own first, and of the lesser families no more than their rules'."""
    assert tune.cuda_options(["hopper/0", "hopper/1", "ampere/0", "ampere/1"]) == ["", "hopper/0", "hopper/1", "ampere"]
    assert tune.cuda_options(["hopper/0", "hopper/1", "ampere/0"], each_plan=False) == ["", "ampere"]
    assert tune.cuda_options(["ampere/0", "ampere/1"]) == ["", "ampere/0", "ampere/1"]
    assert tune.cuda_options([]) == []


@pytest.mark.parametrize("load", ["half", "amp"])
def test_what_is_measured(load: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward without grad, then a train step with every gradient; the same operands for all plans of a shape."""
    monkeypatch.setattr(triton_device, "gpu", lambda index: H200)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    made: list[bool] = []

    def on_cpu(*arguments: Any, device: str, **more: Any) -> Any:
        made.append(device == "cuda")
        return make_inputs(*arguments, **more)

    monkeypatch.setattr(tune, "make_inputs", on_cpu)
    results: list[Any] = []
    monkeypatch.setattr(tune, "device_seconds", lambda call: float(len([*map(results.append, [call()])])))
    monkeypatch.setattr(tuning, "_tables", {})
    tune._inputs.cache_clear()
    for _ in range(2):
        assert tune.on_gpu(Shape(load, 5, 16, 4), "eager", {}) == (1.0, 1.0)
    assert made == [True]
    y, gradients = results[:2]
    assert not y.requires_grad
    assert [list(t.shape) for t in gradients] == [[5, 16], [4, 16], [4], [16, 4], [16]]
    tune._inputs.cache_clear()
