"""`patch` on real packages: adapter-hub's bottlenecks in transformers models, and adapters in a timm model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import adapters
import pytest
import torch
from adapters.composition import Fuse, Stack
from adapters.configuration import BnConfig, DoubleSeqBnConfig, ParBnConfig, SeqBnConfig
from torch import Tensor, nn
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

import aim_fast
from judge import assert_model_judged
from original import Original
from timm_alone import timm

pytestmark = pytest.mark.usefixtures("seed")
SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}

# name: the configuration, how many adapters, and their formula
CONFIGS: dict[str, tuple[BnConfig, int, str]] = {
    "houlsby": (DoubleSeqBnConfig(reduction_factor=4), 4, "scaling * f(x) + residual_input, silu"),
    "pfeiffer": (SeqBnConfig(reduction_factor=4), 2, "scaling * f(x) + residual_input, relu"),
    "parallel": (ParBnConfig(reduction_factor=4), 2, "scaling * f(x), relu"),
    "learned": (ParBnConfig(reduction_factor=4, scaling="learned"), 2, "scaling * f(x), relu"),
    "channel": (SeqBnConfig(reduction_factor=4, scaling="channel"), 2, "scaling * f(x) + residual_input, relu"),
    "gelu": (SeqBnConfig(reduction_factor=4, non_linearity="gelu"), 2, "scaling * f(x) + residual_input, gelu"),
    "leaky": (SeqBnConfig(reduction_factor=4, non_linearity="leakyrelu"), 2, "residual_input, leaky_relu"),
}


def bert(config: BnConfig, *more: str) -> Any:
    return with_adapters(BertModel(BertConfig(vocab_size=50, max_position_embeddings=16, **SIZES)), config, *more)


def vit(config: BnConfig) -> Any:
    return with_adapters(ViTModel(ViTConfig(image_size=32, patch_size=16, **SIZES)), config)


def three(make: Callable[..., Any], *arguments: Any) -> tuple[Any, Any, Any]:
    """The model as it is, one to patch, and one in float64, of equal weights.

    Each is made anew: a copy of an adapter-hub model runs the layers of the model that it is a copy of.
    """
    models = [make(*arguments) for _ in range(3)]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    return models[0], models[1], models[2].double()


def with_adapters(model: Any, config: BnConfig, *more: str) -> Any:
    """The model with adapters of real sizes that train; the one named "a" is active."""
    adapters.init(model)
    for name in ("a", *more):
        model.add_adapter(name, config=config)
    if more:
        model.add_adapter_fusion(Fuse("a", *more))
    model.train_adapter("a")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "adapters" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + 0.1)
    return model.eval()


def step(model: Any, inputs: Tensor) -> dict[str, Tensor]:
    """What the model gives and the gradient of every parameter that trains."""
    model.zero_grad()
    y = model(inputs)
    y = y if isinstance(y, Tensor) else y.last_hidden_state
    # Not of the squares alone: a LayerNorm comes last, whose rows have all the same sum of them.
    target = torch.linspace(-1, 1, y.numel()).to(y.dtype).view_as(y)
    (y - target).square().mean().backward()
    return {"y": y.detach()} | {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.usefixtures("fused")
def test_adapter_hub_in_bert(name: str, calls: list[dict]) -> None:
    config, count, formula = CONFIGS[name]
    original, patched, exact = three(bert, config)
    report = aim_fast.patch(patched)
    assert len(report.taken) == count, str(report)
    assert all(row.why.endswith(formula) for row in report.rows if row.taken), str(report)
    calls.clear()
    tokens = torch.randint(50, (3, 9))
    truth = step(exact, tokens)
    assert len(truth) == 1 + count * (4 + (name in ("learned", "channel")))
    assert_model_judged(step(patched, tokens), step(original, tokens), truth)
    assert len(calls) == count
    # The adapters matter: without them the model gives something else.
    with adapters.AdapterSetup(None):
        assert not torch.allclose(patched(tokens).last_hidden_state, truth["y"].float(), atol=0.1)


@pytest.mark.usefixtures("fused")
def test_adapter_hub_in_a_vision_transformer(calls: list[dict]) -> None:
    original, patched, exact = three(vit, SeqBnConfig(reduction_factor=4))
    report = aim_fast.patch(patched)
    assert len(report.taken) == 2, str(report)
    calls.clear()
    images = torch.randn(2, 3, 32, 32)
    assert_model_judged(step(patched, images), step(original, images), step(exact, images.double()))
    assert len(calls) == 2


def test_all_results_of_an_adapter_hub_adapter() -> None:
    """It returns the hidden activation and the branch too, and they have gradients."""
    original, patched, _ = three(bert, CONFIGS["houlsby"][0])
    aim_fast.patch(patched)
    x, residual = torch.randn(2, 3, 5, 48)
    results = []
    for model in (patched, original):
        adapter = model.encoder.layer[0].output.adapters["a"]
        output, down, up = adapter(x, residual_input=residual)
        (output.sum() + down.square().sum() + up.sum()).backward()
        results.append([output, down, up, *(p.grad for p in adapter.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


def test_refused_where_adapter_hub_does_more() -> None:
    normed = SeqBnConfig(reduction_factor=4, ln_before=True)
    gated = SeqBnConfig(reduction_factor=4, use_gating=True)
    for config, why in ((normed, "holds a LayerNorm"), (gated, "holds a third Linear")):
        report = aim_fast.patch(bert(config))
        assert not report.taken
        assert all(why in reason for reason in report.refused.values() if "widens" not in reason), str(report)


def test_fusion_and_stack_of_adapter_hub(calls: list[dict]) -> None:
    """Compositions that look at the branch get it."""
    original, patched, _ = three(bert, CONFIGS["pfeiffer"][0], "b")
    assert len(aim_fast.patch(patched).taken) == 4
    calls.clear()
    tokens = torch.randint(50, (3, 9))
    for setup in (Fuse("a", "b"), Stack("a", "b")):
        results = []
        for model in (patched, original):
            model.set_active_adapters(setup)
            results.append(model(tokens).last_hidden_state)
        torch.testing.assert_close(*results)
    assert len(calls) == 8


class WithAdapter(nn.Module):
    """A timm block with AIM's adapter after its attention and one beside its MLP."""

    def __init__(self, block: Any, width: int) -> None:
        super().__init__()
        self.block = block
        self.S_Adapter = Original(width)
        self.MLP_Adapter = Original(width, skip_connect=False)

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        x = x + self.S_Adapter(self.block.attn(self.block.norm1(x)))
        normed = self.block.norm2(x)
        return x + self.block.mlp(normed) + 0.5 * self.MLP_Adapter(normed)


@pytest.mark.usefixtures("fused")
def test_timm_with_adapters(calls: list[dict]) -> None:
    sizes = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 5}
    original = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
    original.blocks = nn.Sequential(*(WithAdapter(block, 48) for block in original.blocks))
    original.requires_grad_(False)
    for name, parameter in original.named_parameters():
        parameter.requires_grad_("Adapter" in name)
    patched = copy.deepcopy(original)
    report = aim_fast.patch(patched)
    assert report.taken == tuple(f"blocks.{i}.{kind}_Adapter" for i in range(2) for kind in ("S", "MLP"))
    assert set(report.refused) == {"blocks.0.block.mlp", "blocks.1.block.mlp"}
    assert str(report).splitlines()[1].split()[:4] == ["blocks.*.block.mlp", "x", "2", "Mlp"]
    calls.clear()

    def step(model: Any, images: Tensor) -> dict[str, Tensor]:
        y = model(images)
        wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
        return {
            "y": y.detach(),
            **dict(zip(wanted, torch.autograd.grad(y.square().sum(), [*wanted.values()]), strict=True)),
        }

    images = torch.randn(2, 3, 32, 32)
    exact = copy.deepcopy(original).double()
    assert_model_judged(step(patched, images), step(original, images), step(exact, images.double()))
    assert len(calls) == 4
