"""Measurements that the package ships: whose hold where, and what the user is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aim_fast import nvidia, triton_device, tuning
from aim_fast.__main__ import measurements
from aim_fast.kernels import tiling
from aim_fast.kernels.estimate import Case
from aim_fast.kernels.tiling import Gpu

H100, H200 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132), Gpu("NVIDIA H200", (9, 0), 132)
OTHERS = (Gpu("NVIDIA H100 PCIe", (9, 0), 114), Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108), Gpu("A twin", (8, 9), 132))
CASE = Case(12608, 768, 192, "half", 2, 2, 2, 2)
SHIPPED = tuning.SHIPPED


@pytest.fixture(autouse=True)
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped tables and a cache folder of this test's own, both empty."""
    folder = tmp_path / "measured"
    folder.mkdir()
    monkeypatch.setattr(tuning, "SHIPPED", folder)
    monkeypatch.setenv("AIM_FAST_CACHE", str(tmp_path / "cache"))
    forget(monkeypatch)
    return folder


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_tables", {})
    for cached in (tuning.advice, triton_device.plan, nvidia.cuda_plan):
        cached.cache_clear()


def text_of(gpu: Gpu, us: float = 10.0) -> str:
    """A table of one shape, in which the CUDA kernels took this long and eager 30 us."""
    plans = {kernel: tiling.plans(gpu, kernel, "half", 12608, 768, 192, 2)[-1] for kernel in tiling.KERNELS}
    cuda = {"forward": "ampere/3", "backward": "ampere/0"}
    times = {"cuda": us * 1e-6, "triton": 20e-6, "eager": 30e-6}
    row = tuning.Row(12608, plans, cuda, times, times)
    return tuning.to_json(gpu, {("half", 768, 192): [row]}, {"date": "2026-12-01"})


def ship(folder: Path, gpu: Gpu, us: float = 10.0) -> None:
    (folder / tuning.path(gpu).name).write_text(text_of(gpu, us))


def said(gpu: Gpu) -> str:
    return tuning.advice(gpu, CASE, False, "cuda")[1]


def state(gpu: Gpu) -> str:
    return measurements(tuning.table(gpu), str(tuning.path(gpu)))


def test_what_is_shipped_can_be_read() -> None:
    for file in SHIPPED.glob("*.json"):
        text = file.read_text()
        data = json.loads(text)["gpu"]
        gpu = Gpu(data["name"], tuple(data["capability"]), data["sms"])
        found = tuning.from_json(gpu, text, shipped=True)
        assert found.rows, found.reason
        assert found.date
        assert file.name == tuning.path(gpu).name


@pytest.mark.parametrize("gpu", [H200, H100], ids=["itself", "its twin"])
def test_it_holds_for_the_gpu_and_its_twin(gpu: Gpu, shipped: Path) -> None:
    """With times, plans of both kernels, and the name of what was measured."""
    ship(shipped, H200)
    times = "10 us against eager's 30 us and triton's 20 us for a forward"
    at = f"at M = 12608, D = 768, H = 192 on {gpu.name}"
    assert said(gpu).endswith(f"{times}, measured on NVIDIA H200 at M = 12608, {at}")
    assert tuning.cuda_plan(gpu, "forward", "half", 12608, 768, 192) == "ampere/3"
    last = tiling.plans(gpu, "fwd", "half", 12608, 768, 192, 2)[-1]
    assert tuning.plan(gpu, "fwd", "half", 12608, 768, 192, 1) == last
    assert state(gpu) == "1 shapes, shipped, of NVIDIA H200, 2026-12-01"


@pytest.mark.parametrize("gpu", OTHERS, ids=str)
def test_it_holds_for_no_other_gpu(gpu: Gpu, shipped: Path) -> None:
    ship(shipped, H200)
    assert tuning.table(gpu) == tuning.Table({})
    assert "never measured on this GPU" in said(gpu)
    assert state(gpu) == "none; python -m aim_fast tune"


def test_its_own_table_comes_before_a_twins(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they stand in the alphabet, and whether or not the own one is any good."""
    for gpu, us in ((H100, 11.0), (H200, 22.0)):
        ship(shipped, gpu, us)
    for gpu, us in ((H100, 11), (H200, 22)):
        assert f"{us} us against" in said(gpu)
        assert f"measured on {gpu.name} at" in said(gpu)
    (shipped / tuning.path(H200).name).write_text("")
    forget(monkeypatch)
    assert f"measured on {H100.name} at" in said(H200)


def test_the_users_table_comes_first(shipped: Path) -> None:
    ship(shipped, H200)
    file = tuning.path(H200)
    file.parent.mkdir()
    ship(file.parent, H200, 12.0)
    assert "12 us against" in said(H200)
    assert "measured on this GPU at" in said(H200)
    assert state(H200) == f"1 shapes, {file}, 2026-12-01"


@pytest.mark.parametrize("broken", ["", text_of(H100)], ids=["broken", "foreign"])
def test_a_users_table_that_is_no_good_leaves_the_shipped_one(broken: str, shipped: Path) -> None:
    """A foreign one too: the user's table has to be of this very GPU."""
    ship(shipped, H200)
    file = tuning.path(H200)
    file.parent.mkdir()
    file.write_text(broken)
    reason = f"{file} was ignored: it "
    assert f"measured on NVIDIA H200 at M = 12608; {reason}" in said(H200)
    assert f"shipped, of NVIDIA H200, 2026-12-01; {reason}" in state(H200)
