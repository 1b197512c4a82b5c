"""The modules beside AIM's own classes, as their owners use them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

import aim_fast
from original import PAIRS, Original, assert_same_training_step, pair

pytestmark = pytest.mark.usefixtures("seed")


class Swish(nn.Module):
    """An activation that the operator does not know."""

    def forward(self, z: Tensor) -> Tensor:
        return z * torch.sigmoid(1.3 * z)


FUSED_LAYERS = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": aim_fast.QuickGELU,
    "quick_gelu_of_others": type("QuickGELU", (nn.Module,), {"forward": lambda self, z: z * torch.sigmoid(1.702 * z)}),
    "relu": nn.ReLU,
    "relu_inplace": partial(nn.ReLU, inplace=True),
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
    "identity": nn.Identity,
}
EAGER_LAYERS = {
    "swish": Swish,
    "other_slope": partial(nn.LeakyReLU, 0.2),
    "elu": nn.ELU,
    "lambda": lambda: nn.Sequential(nn.GELU(), nn.Dropout(0.0)),
    "subclass": type("GELU", (nn.GELU,), {"forward": lambda self, z: z.sin()}),
    "misnamed": type("QuickGELU", (nn.Module,), {"forward": lambda self, z: z * torch.sigmoid(1.7 * z)}),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("shape", [(5, 48), (2, 7, 48), (2, 3, 4, 48), (48,)], ids=str)
def test_same_as_the_original(name: str, shape: tuple[int, ...], calls: list[dict]) -> None:
    ours, original = pair(name)
    assert_same_training_step(ours, original, torch.randn(shape))
    assert len(calls) == 1
    assert calls[0]["skip"] is ("no_skip" not in name and name != "T_Adapter")


@pytest.mark.parametrize("name", PAIRS)
def test_checkpoints_fit_both_ways(name: str) -> None:
    ours, original = (make(40, 0.5) for make in PAIRS[name])
    assert list(ours.state_dict()) == list(original.state_dict())
    ours.load_state_dict(original.state_dict(), strict=True)
    original.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(3, 40)
    torch.testing.assert_close(ours(x), original(x))


@pytest.mark.parametrize("name", PAIRS)
def test_structure(name: str) -> None:
    ours, _ = (make(30, mlp_ratio=0.35) for make in PAIRS[name])
    assert [child for child, _ in ours.named_children()] == ["act", "D_fc1", "D_fc2"]
    assert list(ours.state_dict()) == ["D_fc1.weight", "D_fc1.bias", "D_fc2.weight", "D_fc2.bias"]
    for linear, size in ((ours.D_fc1, (10, 30)), (ours.D_fc2, (30, 10))):  # int(30 * 0.35)
        assert type(linear) is nn.Linear
        assert linear.weight.shape == size
    assert type(ours.act) is nn.GELU
    assert hasattr(ours, "skip_connect") is name.startswith("Adapter")


def test_skip_connect_is_read_at_every_call() -> None:
    ours, original = pair()
    x = torch.randn(3, 48)
    ours.skip_connect = original.skip_connect = False
    torch.testing.assert_close(ours(x), original(x))


@pytest.mark.parametrize("layer", FUSED_LAYERS)
def test_known_activation_is_fused(layer: str, calls: list[dict]) -> None:
    ours, original = pair(act_layer=FUSED_LAYERS[layer])
    assert_same_training_step(ours, original, torch.randn(9, 48) * 3)
    assert [call["activation"] for call in calls] == [layer.removesuffix("_inplace").removesuffix("_of_others")]


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("layer", EAGER_LAYERS)
def test_other_activation_runs_as_written(name: str, layer: str, calls: list[dict]) -> None:
    ours, original = pair(name, act_layer=EAGER_LAYERS[layer])
    assert_same_training_step(ours, original, torch.randn(9, 48) * 3)
    assert not calls


@pytest.mark.parametrize("layer", [nn.GELU, Swish], ids=["fused", "eager"])
@pytest.mark.parametrize("skip", [False, True])
def test_tail(layer: type[nn.Module], skip: bool) -> None:
    """The keywords of the call: the same result whether the operator runs or the children do."""
    ours, original = pair("Adapter" if skip else "Adapter_no_skip", act_layer=layer)
    x, residual = torch.randn(2, 6, 4, 48).unbind()
    row_scale = torch.tensor([0.0, 1.25, 0.0, 1.25, 1.25, 0.0]).unsqueeze(1)
    for scale in (0.5, torch.rand(1), torch.rand(48)):
        f = original(x) - x if skip else original(x)
        expected = scale * row_scale.unsqueeze(-1) * f + residual + (x if skip else 0)
        torch.testing.assert_close(ours(x, scale=scale, row_scale=row_scale, residual=residual), expected)


def test_truth_value_is_a_modules() -> None:
    """Code tests `if self.adapter:`; nn.Module has neither length nor truth value of its own."""
    assert not hasattr(aim_fast.Adapter, "__len__")
    assert not hasattr(aim_fast.Adapter, "__bool__")


class Block(nn.Module):
    """Adapters under AIM's names, one under another, and layers beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.S_Adapter = aim_fast.Adapter(32)
        self.T_Adapter = aim_fast.Adapter(32, skip_connect=False)
        self.T_Adapter_in = aim_fast.Adapter(32)
        self.MLP_Adapter = Original(32)
        self.other = aim_fast.Adapter(32)
        self.head = nn.Linear(32, 5)
        self.plain = nn.Linear(32, 5, bias=False)
        self.ln_1 = nn.LayerNorm(32)
        self.ln_2 = nn.LayerNorm(32, elementwise_affine=False)
        for parameter in self.parameters():
            nn.init.constant_(parameter, 7.0)


def test_init_adapters() -> None:
    block = Block()
    aim_fast.init_adapters(block)
    for name, parameter in block.named_parameters():
        zeroed = "D_fc2" in name and any(key in name for key in ("S_Adapter", "T_Adapter", "MLP_Adapter"))
        if name == "ln_1.weight":
            assert (parameter == 1).all()
        elif zeroed or name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            assert 0.012 < parameter.std() < 0.03, name
            assert parameter.abs().max() < 2, name
            assert (parameter != 0).any()
        assert parameter.requires_grad, name
    x = torch.randn(4, 32)
    assert torch.equal(block.S_Adapter(x), x)
    assert torch.equal(block.T_Adapter(x), torch.zeros_like(x))
    assert not torch.equal(block.other(x), x)
