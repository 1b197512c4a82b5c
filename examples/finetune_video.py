"""Train AIM's adapters in a frozen vision transformer to tell which video a short clip comes from.

    python examples/finetune_video.py --adapter aim_fast --plot loss.png
    python examples/finetune_video.py --compare --plot loss.png

--compare trains one model with aim_fast's adapters and one with plain ones on the same clips, turn by turn, and then
times both kinds of adapter alone on the inputs that the trained models give them. The exit code is 1 if the loss curves
differ by more than rounding explains: `aim_fast.testing.budget`, with the plain model in float64 as the truth.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

import share
from aim_fast.testing import Budget, budget
from aim_vit import AimViT
from clips import VIDEOS, draw_clips, load_videos

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


class Run:
    """A model in training, with its losses and the seconds of each step; all runs start from the same weights.

    bf16 is autocast over fp32 parameters; other dtypes are the parameters' own.
    """

    def __init__(self, adapter: str, dtype: str, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        sizes = {name: getattr(options, name) for name in ("frames", "size", "width", "depth")}
        self.model = AimViT(adapter, len(VIDEOS), **sizes)
        self.dtype = dtype
        if dtype == "fp64":
            self.model.double()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        # AIM's recipe but for lr: three times its 3e-4, since this backbone is not pretrained.
        self.optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.05)
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast("cpu", torch.bfloat16) if self.dtype == "bf16" else nullcontext()

    def step(self, clips: Tensor, labels: Tensor) -> None:
        torch.manual_seed(len(self.losses))  # every run drops the same paths
        start = time.perf_counter()
        self.optimizer.zero_grad()
        with self.autocast():
            scores = self.model(clips.to(self.model.cls_head.weight.dtype))
            loss = F.cross_entropy(scores, labels)
        loss.backward()
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(loss.item())


def train(runs: dict[str, Run], options: argparse.Namespace) -> Tensor:
    """Train all runs on the same clips, turn by turn, as the machine's speed varies; returns the last clips."""
    videos = load_videos(options.size * 8 // 7)
    draw = torch.Generator().manual_seed(0)
    for step in range(1, options.steps + 1):
        clips, labels = draw_clips(videos, options.batch, options.frames, options.size, draw)
        for run in runs.values():
            run.step(clips, labels)
        shown = "   ".join(f"{name} {run.losses[-1]:.5f}, {run.seconds[-1]:.2f} s" for name, run in runs.items())
        print(f"step {step:3d}/{options.steps}   loss: {shown}", flush=True)
    return clips


def curves_agree(runs: dict[str, Run], dtype: str) -> Budget:
    """The fused loss curve's distance from float64's, beside the plain one's."""
    fused, eager = (torch.tensor(runs[name].losses, dtype=DTYPES[dtype]) for name in ("aim_fast", "eager"))
    return budget(fused, eager, torch.tensor(runs["float64"].losses, dtype=torch.float64))


def costs(runs: dict[str, Run], clips: Tensor) -> dict[str, dict[str, float]]:
    """By run: seconds of a step and of its adapters alone, MiB saved by the model and by its adapters alone."""
    rows: dict[str, dict[str, float]] = {}
    calls = {}
    with next(iter(runs.values())).autocast():
        for name, run in runs.items():
            torch.manual_seed(0)
            calls[name], model_mib = share.record(run.model, run.model.adapters(), clips)
            rows[name] = {"step": statistics.median(run.seconds), "saved": model_mib}
            rows[name]["adapters saved"] = share.saved_mib(calls[name])
        for name, seconds in share.seconds(calls).items():
            rows[name]["adapters"] = seconds
    return rows


def report(rows: dict[str, dict[str, float]]) -> None:
    """Print the costs, and the gain of aim_fast."""
    print(f"\n{'':10}{'step':>10}{'adapters of it':>24}{'saved by model':>18}{'adapters of it':>22}")
    for name, row in rows.items():
        time_share, memory_share = row["adapters"] / row["step"], row["adapters saved"] / row["saved"]
        print(
            f"{name:10}{1e3 * row['step']:7.0f} ms{1e3 * row['adapters']:13.1f} ms, {time_share:4.0%}"
            f"{row['saved']:16.1f} MiB{row['adapters saved']:13.1f} MiB, {memory_share:4.0%}"
        )
    eager, fused = rows["eager"], rows["aim_fast"]
    gains = ", ".join(f"{eager[key] / fused[key]:.2f} x in {key}" for key in ("step", "adapters", "adapters saved"))
    print(f"eager / aim_fast: {gains}")


def plot(path: str, runs: dict[str, Run], rows: dict[str, dict[str, float]]) -> None:
    """Write a PNG: the loss curves, and with costs what the adapters of a step take."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4) if rows else (6, 4), layout="constrained")
    axes = figure.subplots(1, 3 if rows else 1, squeeze=False, width_ratios=[3, 1, 1] if rows else None)[0]
    colours = {"eager": "#9aa5b1", "aim_fast": "#d9480f"}
    for name in (name for name in colours if name in runs):
        steps = range(1, len(runs[name].losses) + 1)
        thick = name == "eager"
        axes[0].plot(steps, runs[name].losses, label=name, color=colours[name], lw=5 if thick else 1.6)
    axes[0].set(xlabel="step", ylabel="loss", title="Which video is the clip from?", ylim=(0, None))
    axes[0].legend(frameon=False)
    bars = (
        ("adapters", 1e3, "Time in adapters\n(ms a step)"),
        ("adapters saved", 1, "Saved by adapters\n(MiB a step)"),
    )
    for axis, (key, factor, title) in zip(axes[1:], bars, strict=False):
        values = [factor * rows[name][key] for name in colours]
        axis.bar_label(axis.bar(list(colours), values, color=list(colours.values())), fmt="%.1f")
        axis.set(title=title)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    print(f"plot: {path}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", choices=("aim_fast", "eager"), default="aim_fast")
    parser.add_argument("--compare", action="store_true", help="train with both adapters and compare them")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="bf16 is autocast")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=112, help="height and width of a frame, a multiple of 16")
    parser.add_argument("--width", type=int, default=384, help="D, a multiple of 64")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--plot", metavar="FILE", help="write a PNG of the loss")
    options = parser.parse_args()
    if options.width % 64 or options.size % 16:
        parser.error("--width must be a multiple of 64, --size of 16")

    names = ("eager", "aim_fast") if options.compare else (options.adapter,)
    runs = {name: Run(name, options.dtype, options) for name in names}
    if not options.compare:
        train(runs, options)
        if options.plot:
            plot(options.plot, runs, {})
        return 0

    clips = train(runs | {"float64": (truth := Run("eager", "fp64", options))}, options)
    rows = costs(runs, clips)
    report(rows)
    if options.plot:
        plot(options.plot, runs, rows)
    agreement = curves_agree(runs | {"float64": truth}, options.dtype)
    verdict = "equal" if agreement.ok else "NOT equal"
    print(f"loss curves against float64: aim_fast's {agreement}: {verdict} within rounding")
    return 0 if agreement.ok else 1


if __name__ == "__main__":
    sys.exit(main())
