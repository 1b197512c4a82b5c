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
from aim_fast.tune import Shape

H200 = Gpu("NVIDIA H200", (9, 0), 132)


def options(shape: Shape, backend: str) -> Mapping[str, Sequence[Any]]:
    """One plan a kernel; none of the CUDA kernels for a wide H."""
    if backend == "triton":
        return {kernel: tiling.plans(H200, kernel, *shape, 2)[:1] for kernel in tiling.KERNELS}
    return dict.fromkeys(tuning.DIRECTIONS, ("hopper/0",)) if shape.H <= 320 else {}


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
    ],
    ids=["all", "cuda", "shapes", "none"],
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
    assert all(len(rows) == len(tune.ROWS) for rows in found.rows.values())
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
