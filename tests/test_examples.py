"""The example on its real clips: both adapters learn the same, and the comparison notices when they do not."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import finetune_video
from clips import VIDEOS, draw_clips, load_videos
from finetune_video import Run, costs, curves_agree, train

SCRIPT = Path(finetune_video.__file__)
SMALL = argparse.Namespace(steps=3, batch=3, frames=4, size=32, width=64, depth=2)


@pytest.fixture(scope="module")
def videos() -> list[Tensor]:
    return load_videos(36)


def test_clips_are_the_videos(videos: list[Tensor]) -> None:
    assert len(videos) == len(VIDEOS)
    draw = torch.Generator().manual_seed(0)
    clips, labels = draw_clips(videos, 4, 3, 32, draw)
    assert clips.shape == (4, 3, 3, 32, 32)
    assert labels.tolist() == [0, 1, 2, 0]
    assert not torch.equal(clips[0], clips[3])
    frame = (clips[1, 0] + 2) * 64  # [3, 32, 32]
    crops = videos[1].unfold(2, 32, 1).unfold(3, 32, 1)  # every crop of every frame [F, 3, rows, columns, 32, 32]
    assert (crops == frame[:, None, None]).all(-1).all(-1).all(1).any()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.usefixtures("fused")
def test_same_loss_curve(dtype: str) -> None:
    runs = {name: Run(name, dtype, SMALL) for name in ("aim_fast", "eager")} | {"float64": Run("eager", "fp64", SMALL)}
    train(runs, SMALL)
    assert curves_agree(runs, dtype).ok
    runs["aim_fast"].losses[-1] *= 1.02
    assert not curves_agree(runs, dtype).ok


@pytest.mark.usefixtures("fused")
def test_fused_saves_less() -> None:
    runs = {name: Run(name, "fp32", SMALL) for name in ("aim_fast", "eager")}
    rows = costs(runs, train(runs, SMALL))
    assert rows["aim_fast"]["adapters saved"] < rows["eager"]["adapters saved"]
    assert rows["aim_fast"]["saved"] < rows["eager"]["saved"]


def test_trains_adapters_only() -> None:
    run = Run("aim_fast", "fp32", SMALL)
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    train({"aim_fast": run}, SMALL)
    changed = {name for name, p in run.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name, p in run.model.named_parameters() if p.requires_grad}
    assert all(any(key in name for key in ("Adapter", "temporal_embedding", "ln_post", "cls_head")) for name in changed)
    assert sum("D_fc2.weight" in name for name in changed) == 3 * SMALL.depth


def test_command(tmp_path: Path) -> None:
    sizes = [f"--{name}={value}" for name, value in vars(SMALL).items()]
    command = [sys.executable, str(SCRIPT), "--compare", *sizes, "--plot", str(tmp_path / "loss.png")]
    variables = os.environ | {"PYTHONPATH": str(SCRIPT.parent.parent)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step   3/3" in done.stdout
    assert "x in adapters saved" in done.stdout
    assert "equal within rounding" in done.stdout
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
