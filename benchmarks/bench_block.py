"""AIM's block and a whole training step of its ViT-B/16: fused, patched and plain, in time and memory.

    python benchmarks/bench_block.py --quick
    python benchmarks/bench_block.py --dtypes bf16 --frames 16 --json block.json

plain     the block as AIM has it: regrouped tokens, separate adds, plain adapters
patched   the same after `aim_fast.patch`
fused     examples/aim_vit.py's block: adapters take residual, scale and drop-path factors, nothing is regrouped

Rivals have equal weights and drop equal paths. Each is held against the plain one in float64 before anything is timed,
by the budget of aim_fast.testing, and they take turns in one process. Exit status 1 when a result was wrong.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))

import aim_fast
import harness
import memory
from aim_fast.testing import Budget, budget
from aim_vit import BLOCKS, AimViT
from devices import DEVICES
from harness import DTYPES, Step
from machine import provenance
from share import Saved

RIVALS = {"plain": "plain", "patched": "plain", "fused": "aim_fast"}  # the kind of block that each is made of
CLASSES = 400


@dataclass(frozen=True)
class Sizes:
    """What is measured: clips of so many frames [clips, frames, 3, size, size], by a model of this width and depth."""

    clips: int
    frames: int
    size: int
    width: int
    depth: int

    @property
    def tokens(self) -> int:
        return (self.size // 16) ** 2 + 1


FULL = Sizes(clips=1, frames=8, size=224, width=768, depth=12)
QUICK = Sizes(clips=1, frames=8, size=224, width=768, depth=2)


def rivals(make: Callable[[str], nn.Module], dtype: torch.dtype) -> dict[str, nn.Module]:
    """The rivals with the weights of one plain module, none of the adapters' zero, in training mode."""
    torch.manual_seed(0)
    plain = make("plain")
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if "Adapter" in name:
                parameter.normal_(std=0.02)
    made = {}
    for name, kind in RIVALS.items():
        made[name] = make(kind)
        made[name].load_state_dict(plain.state_dict())
        if name == "patched":
            report = aim_fast.patch(made[name])
            assert report.taken, str(report)
        made[name].to(dtype)
    return made


def trained(module: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def gradients(module: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What the module gives, and the gradients of its trained parameters and of x if that has one."""
    torch.manual_seed(1)
    wanted = [*trained(module).values(), *([x] if x.requires_grad else [])]
    y = module(x)
    return y, [*torch.autograd.grad(y, wanted, torch.ones_like(y))]


def check(made: dict[str, nn.Module], x: Tensor) -> dict[str, Budget]:
    """The worst error of each rival's results and gradients, all of them as one row beside their largest value."""

    def results(module: nn.Module, x: Tensor) -> list[Tensor]:
        y, grads = gradients(module, x)
        return [y.detach(), *grads]

    exact = results(copy.deepcopy(made["plain"]).double(), x.detach().double().requires_grad_(x.requires_grad))
    scales = [t.abs().max().clamp(min=1e-30) for t in exact]

    def row(tensors: list[Tensor]) -> Tensor:
        return torch.cat([(t.double() / s).flatten() for t, s in zip(tensors, scales, strict=True)]).to(x.dtype)

    truth = torch.cat([(t / s).flatten() for t, s in zip(exact, scales, strict=True)])
    plain = row(results(made["plain"], x))
    return {name: budget(row(results(made[name], x)), plain, truth) for name in made if name != "plain"}


def steps(made: dict[str, nn.Module], x: Tensor, kind: str) -> dict[str, Step]:
    """forward: without grad. train: forward and backward; for a model with its optimizer's step."""

    def forward(module: nn.Module) -> Callable[[Any], Any]:
        def run(_: Any) -> Tensor:
            with torch.no_grad():
                return module(x)

        return run

    def train(module: nn.Module) -> Callable[[Any], Any]:
        if not isinstance(module, AimViT):
            return lambda _: gradients(module, x)
        # No rate: every step starts from the same weights, at the cost of any other.
        optimizer = torch.optim.AdamW(trained(module).values(), lr=0.0, weight_decay=0.05)

        def run(_: Any) -> None:
            torch.manual_seed(1)
            optimizer.zero_grad()
            labels = torch.zeros(len(x), dtype=torch.long)
            nn.functional.cross_entropy(module(x).float(), labels).backward()
            optimizer.step()

        return run

    make = {"forward": forward, "train": train}[kind]
    return {name: Step(lambda: None, make(module)) for name, module in made.items()}


def measure(sizes: Sizes, what: str, dtype: str, seconds: float) -> list[dict[str, Any]]:
    """A row for each pass of the block or the model. Raises ArithmeticError for a wrong result."""
    if what == "block":

        def make(kind: str) -> nn.Module:
            block, adapter = BLOCKS[kind]
            return freeze(block(sizes.width, sizes.width // 64, adapter, 0.1))

        x = torch.randn(sizes.tokens, sizes.clips, sizes.frames, sizes.width, dtype=DTYPES[dtype], requires_grad=True)
    else:

        def make(kind: str) -> nn.Module:
            return AimViT(kind, CLASSES, frames=sizes.frames, size=sizes.size, width=sizes.width, depth=sizes.depth)

        x = torch.randn(sizes.clips, sizes.frames, 3, sizes.size, sizes.size, dtype=DTYPES[dtype])
    made = rivals(make, DTYPES[dtype])
    errors = check(made, x)
    for name, error in errors.items():
        if not error.ok:
            raise ArithmeticError(f"{what} {dtype}: {name} is wrong, not timed: {error}")
    rows = []
    for kind in ("forward", "train"):
        run = steps(made, x, kind)
        times = harness.interleave({name: [one] for name, one in run.items()}, seconds)
        medians = {name: statistics.median(values) for name, values in times.items()}
        rows.append(
            {
                "what": what,
                "dtype": dtype,
                "pass": kind,
                **asdict(sizes),
                "rounds": len(times["plain"]),
                "us": {name: 1e6 * value for name, value in medians.items()},
                "speedup": {name: medians["plain"] / value for name, value in medians.items()},
                "peak_mib": {name: DEVICES["cpu"].peak_bytes(one) / memory.MIB for name, one in run.items()},
                "saved_mib": {name: saved_mib(module, x) for name, module in made.items()} if kind == "train" else {},
                "errors": {name: asdict(error) for name, error in errors.items()},
            }
        )
    return rows


def saved_mib(module: nn.Module, x: Tensor) -> float:
    """MiB that one forward keeps for the backward, parameters left out."""
    saved = Saved(module)
    with saved.hooks:
        module(x)
    return saved.mib()


def freeze(block: nn.Module) -> nn.Module:
    """Only the adapters train, as in the whole model."""
    for name, parameter in block.named_parameters():
        parameter.requires_grad_("Adapter" in name)
    return block


def table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds, how many times plain's speed, and MiB: kept for the backward, and at most at once."""
    titles = [f"{name} {unit}" for unit in ("saved", "peak") for name in RIVALS]
    lines = [("", "", "", *(f"{name} ms" for name in RIVALS), "patched", "fused", *titles)]
    for row in rows:
        times = [f"{row['us'][name] / 1e3:.1f}" for name in RIVALS]
        sizes = [f"{row[kind][name]:.1f}" if row[kind] else "" for kind in ("saved_mib", "peak_mib") for name in RIVALS]
        ratios = [f"{row['speedup'][name]:.2f} x" for name in ("patched", "fused")]
        lines.append((row["what"], row["dtype"], row["pass"], *times, *ratios, *sizes))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 blocks instead of 12, within two minutes on two cores")
    parser.add_argument("--what", nargs="+", choices=("block", "model"), default=["block", "model"])
    parser.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    for name, number in asdict(FULL).items():
        parser.add_argument(f"--{name}", type=int, help=f"default: {number}; with --quick {getattr(QUICK, name)}")
    parser.add_argument("--seconds", type=float, help="timing per row (default: 20; with --quick 2)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: torch's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    options = parser.parse_args(argv)
    given = {name: getattr(options, name) for name in asdict(FULL)}
    sizes = replace(QUICK if options.quick else FULL, **{name: n for name, n in given.items() if n is not None})
    if min(asdict(sizes).values()) < 1 or sizes.width % 64 or sizes.size % 16:
        parser.error(f"{sizes}: expected numbers from 1, a width that is a multiple of 64 and a size of 16")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    seconds = options.seconds or (2.0 if options.quick else 20.0)
    print(f"{sizes}, {torch.get_num_threads()} threads")
    for dtype in options.dtypes:
        for what in options.what:
            try:
                rows += measure(sizes, what, dtype, seconds)
            except ArithmeticError as error:
                problems.append(str(error))
    print(table(rows))
    print("\n".join(problems))
    if options.json is not None:
        common = {**provenance(), "threads": torch.get_num_threads()}
        written = {"rows": [{**row, **common} for row in rows], "problems": problems}
        options.json.write_text(json.dumps(written, indent=1) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
