"""AIM's block in its two ways: equal results and gradients, within rounding, fused, patched and plain."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aim_fast
from aim_vit import BLOCKS, AimViT, Block, EagerAdapter, PlainBlock
from judge import assert_judged, assert_model_judged
from patched import drawn

pytestmark = pytest.mark.usefixtures("seed")
D, HEADS = 64, 2
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def blocks(**options: Any) -> dict[str, nn.Module]:
    """A block of each kind with the same weights of real sizes, and a plain one that was patched."""
    made: dict[str, nn.Module] = {kind: block(D, HEADS, make, **options) for kind, (block, make) in BLOCKS.items()}
    drawn(made["plain"])
    for block in made.values():
        block.load_state_dict(made["plain"].state_dict())
    made["patched"] = copy.deepcopy(made["plain"])
    assert len(aim_fast.patch(made["patched"]).taken) == 3 + options.get("two_temporal", False)
    return made


def step(block: nn.Module, x: Tensor, dy: Tensor, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """y and the gradients of x and of every adapter; the same paths are dropped each time."""
    torch.manual_seed(5)
    x = x.detach().requires_grad_()
    wanted = {"x": x} | {name: p for name, p in block.named_parameters() if "Adapter" in name}
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        y = block(x)
    grads = torch.autograd.grad(y, [*wanted.values()], dy.to(y.dtype))
    return {"y": y.detach()} | {f"d{name}": grad for name, grad in zip(wanted, grads, strict=True)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("two_temporal", [False, True], ids=["kinetics", "something"])
@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.usefixtures("fused")
def test_equal_results_and_gradients(dtype: str, two_temporal: bool, rate: float, calls: list[dict]) -> None:
    made = blocks(drop_path_rate=rate, two_temporal=two_temporal)
    x, dy = torch.randn(2, 10, 2, 3, D)
    exact = step(copy.deepcopy(made["plain"]).double(), x.double(), dy.double(), None)
    given = [t.to(DTYPES[dtype]) for t in (x, dy)]
    if dtype == "bf16":
        exact = step(copy.deepcopy(made["plain"]).bfloat16().double(), given[0].double(), given[1].double(), None)
    results = {}
    for kind, block in made.items():
        calls.clear()
        results[kind] = step(block.to(DTYPES[dtype]), given[0], given[1], None)
        assert len(calls) == (3 + two_temporal if kind in ("aim_fast", "patched") else 0)
    # In bf16 attention makes much of what rounding did before it: eager's own error in the gradient of one bias is 0.5
    # to 19 % by the seed, ours 0.5 to 23 %.
    judge = assert_model_judged if dtype == "bf16" else assert_judged
    for kind in ("aim_fast", "patched"):
        judge(results[kind], results["plain"], exact)


@pytest.mark.usefixtures("fused")
def test_equal_under_autocast() -> None:
    made = blocks(drop_path_rate=0.4)
    x, dy = torch.randn(2, 10, 2, 3, D)
    exact = step(copy.deepcopy(made["plain"]).double(), x.double(), dy.double(), None)
    results = {kind: step(block, x, dy, torch.bfloat16) for kind, block in made.items()}
    assert_judged(results["aim_fast"], results["plain"], exact)


@pytest.mark.usefixtures("fused")
def test_nothing_is_regrouped(calls: list[dict]) -> None:
    """No copy in the fused block, where the plain one has several; its adapters get the residual and the factors."""
    x = torch.randn(10, 2, 3, D)
    copies = {}
    for kind in ("aim_fast", "plain"):
        block, adapter = BLOCKS[kind]
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            y = block(D, HEADS, adapter, 0.3)(x)
        copies[kind] = sum(event.count for event in profile.key_averages() if event.key == "aten::clone")
        assert y.is_contiguous()
    assert copies["aim_fast"] == 0
    assert copies["plain"] >= 4
    tails = [(call["row_scale"] is not None, call["skip"], call["scale"]) for call in calls]
    assert tails == [(True, False, 1.0), (False, True, 1.0), (True, False, 0.5)]
    assert all(call["residual"] is not None for call in calls)


def test_whole_model() -> None:
    sizes: Any = {"frames": 2, "size": 32, "width": D, "depth": 2, "two_temporal": True}
    models = {kind: AimViT(kind, 5, **sizes).eval().double() for kind in BLOCKS}
    drawn(models["plain"])
    for model in models.values():
        model.load_state_dict(models["plain"].state_dict())
    clips = torch.randn(2, 2, 3, 32, 32, dtype=torch.float64)

    def run(model: Any, clips: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        y = model(clips)
        y.square().sum().backward()
        return {"y": y.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    truth, ours = (run(models[kind], clips) for kind in ("plain", "aim_fast"))
    assert all(
        any(key in name for key in ("Adapter", "temporal_embedding", "ln_post", "cls_head"))
        for name in truth
        if name != "y"
    )
    # In float64, since from block to block a model makes as much of a rounding as it likes; blocks are judged above.
    for name, value in truth.items():
        assert (ours[name] - value).abs().max() <= 1e-9 * value.abs().max(), name


def test_sizes_of_vit_b_16() -> None:
    with torch.device("meta"):
        model = AimViT("aim_fast", 400)
    counts = {True: 0, False: 0}
    for parameter in model.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    # 86M of the image model; 3 adapters of 768 -> 192 in each of 12 blocks, temporal embedding, ln_post and head.
    assert 85e6 < counts[False] < 87e6
    adapters = 36 * (2 * 768 * 192 + 192 + 768)
    assert counts[True] == adapters + 8 * 768 + 2 * 768 + 768 * 400 + 400
    assert isinstance(model.blocks[0], Block)
    assert not isinstance(model.blocks[0], PlainBlock)
    assert isinstance(AimViT("plain", 2, frames=1, size=16, width=64, depth=1).blocks[0].S_Adapter, EagerAdapter)
