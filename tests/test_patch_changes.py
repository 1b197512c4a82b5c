"""What owners do to a model after it was patched: hooks, wrapped layers, copies, stores, other dtypes."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import aim_fast
from changes import CHANGES
from original import Original, assert_same_training_step
from patched import drawn, patched_copy
from variants import TAKEN, D

pytestmark = pytest.mark.usefixtures("seed")
# One of each kind: an attribute decides, a scale of its own layer, layers in a container, several results.
KINDS = ("aim_vit", "channel_scale", "as_sequential", "three_results")


def pair(calls: list[dict], width: int = 48) -> tuple[Any, Any]:
    """A patched adapter and the same unpatched."""
    original = drawn(Original(width))
    return patched_copy(original, calls), original


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__[1:])
@pytest.mark.parametrize("first", ["patched", "changed"])
def test_changed_child_is_honoured(change: Callable[[Any], None], first: str, calls: list[dict]) -> None:
    """A child that does more than nn.Linear or its activation runs as written, whether it came before or after."""
    ours, original = pair(calls)
    if first == "changed":
        aim_fast.unpatch(ours)
    change(ours)
    torch.manual_seed(1)
    change(original)
    original.load_state_dict(ours.state_dict(), strict=True)
    if first == "changed":
        aim_fast.patch(ours)
        calls.clear()
    assert_same_training_step(ours, original, torch.randn(5, 48))
    assert not calls


def test_fused_again_when_the_change_is_gone(calls: list[dict]) -> None:
    original: Any = drawn(Original(D))
    parametrizations.weight_norm(original.D_fc1)
    handle = original.D_fc2.register_forward_hook(lambda linear, args, output: output + 1)
    report = aim_fast.patch(original)
    assert report.rows[0].why == "f(x) + x, gelu; eager while D_fc1 is no plain nn.Linear"
    x = torch.randn(3, D)
    calls.clear()
    hooked = original(x)
    parametrize.remove_parametrizations(original.D_fc1, "weight")
    assert torch.equal(original(x), hooked)
    assert not calls
    handle.remove()
    torch.testing.assert_close(original(x), hooked - 1)
    assert len(calls) == 1


class Quantized(Tensor):
    """A weight that is no plain tensor, as torchao's are; its products are its own."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        return 2 * result.as_subclass(Tensor) if func is nn.functional.linear else result


def test_quantized_linear_runs_as_written(calls: list[dict]) -> None:
    ours, original = pair(calls)
    x = torch.randn(5, 48)
    quantize = torch.ao.nn.quantized.dynamic.Linear(48, 12)
    before = ours.D_fc1
    ours.D_fc1 = original.D_fc1 = quantize
    assert torch.equal(ours(x), original(x))
    ours.D_fc1 = original.D_fc1 = before
    with torch.no_grad():
        weight = before.weight.detach().as_subclass(Quantized)
        before.weight = nn.Parameter(weight, requires_grad=False)
        assert type(before.weight) is Quantized
        assert torch.equal(ours(x), original(x))
    assert not calls


def test_layer_replaced_in_a_container_is_honoured(calls: list[dict]) -> None:
    original: Any = drawn(TAKEN["as_sequential"][0]())
    ours = patched_copy(original, calls)
    x = torch.randn(5, D)
    for adapter in (ours, original):
        adapter.net[2] = nn.Softplus()
    torch.testing.assert_close(ours(x), original(x), rtol=0, atol=0)
    handle = ours.net.register_forward_hook(lambda net, args, output: output * 0)
    assert torch.equal(ours(x), x)
    assert not calls
    handle.remove()
    ours.net[2] = original.net[2] = nn.Identity()
    torch.testing.assert_close(ours(x), original(x))
    assert len(calls) == 1


@pytest.mark.parametrize("other", [nn.Identity(), nn.Sigmoid(), nn.LayerNorm(6)], ids=lambda m: type(m).__name__)
def test_replaced_dropout_is_honoured(other: nn.Module, calls: list[dict]) -> None:
    original: Any = drawn(TAKEN["dropout"][0]())
    ours = patched_copy(original, calls)
    ours.drop = original.drop = other
    x = torch.randn(5, D)
    assert torch.equal(ours(x), original(x))
    assert not calls


def test_child_of_two_names_replaced_under_one_is_honoured(calls: list[dict]) -> None:
    """Which of them forward reads is its own business."""
    original: Any = drawn(Original(D))
    del original.act
    original.first_name = original.act = nn.GELU()
    ours = patched_copy(original, calls)
    ours.act = original.act = nn.Tanh()
    x = torch.randn(5, D)
    assert torch.equal(ours(x), original(x))
    assert not calls


def test_hooks_on_the_adapter_run(calls: list[dict]) -> None:
    original: Any = drawn(Original(D))
    seen: list[str] = []
    original.register_forward_pre_hook(lambda module, args: seen.append("before"))
    ours = patched_copy(original, calls)
    ours.register_forward_hook(lambda module, args, output: output * 0)
    ours.register_full_backward_hook(lambda module, into, out: seen.append("backward"))
    y = ours(torch.randn(3, D, requires_grad=True))
    y.sum().backward()
    assert (y == 0).all()
    assert seen == ["before", "backward"]
    assert len(calls) == 1


def _pickled(module: Any) -> Any:
    return pickle.loads(pickle.dumps(module))


def _old_pickle(module: Any) -> Any:
    return pickle.loads(pickle.dumps(module, protocol=0))


def _saved(module: Any) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _averaged(module: Any) -> Any:
    return AveragedModel(module).module


@pytest.mark.parametrize("clone", [copy.deepcopy, _pickled, _old_pickle, _saved, _averaged], ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", KINDS)
def test_copies_are_fused_and_independent(clone: Callable[[Any], Any], name: str, calls: list[dict]) -> None:
    make, inputs, _ = TAKEN[name]
    ours = patched_copy(drawn(make()), calls)
    arguments = torch.randn(1 + inputs, 3, D)
    expected = ours(*arguments)
    other = clone(ours)
    assert type(other) is type(ours)
    assert isinstance(other, type(make()))
    torch.testing.assert_close(other(*arguments), expected, rtol=0, atol=0)
    assert len(calls) == 2
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(3)
    torch.testing.assert_close(ours(*arguments), expected, rtol=0, atol=0)
    assert not torch.equal(other(*arguments)[0], expected[0])
    assert len(calls) == 4
    assert aim_fast.unpatch(other) == ("",)
    assert type(other) is type(make())
    assert type(ours) is not type(make())


def test_shallow_copies_and_replicas_run_on_their_own_weights(calls: list[dict]) -> None:
    ours, _ = pair(calls)
    x = torch.randn(3, 48)
    expected = ours(x)
    for other in (copy.copy(ours), ours._replicate_for_data_parallel()):
        other._modules = dict(ours._modules)
        other.D_fc2 = nn.Linear(12, 48)
        torch.testing.assert_close(other(x), x + other.D_fc2(ours.act(ours.D_fc1(x))))
        assert torch.equal(ours(x), expected)
    assert len(calls) == 5


def test_the_object_stays(calls: list[dict]) -> None:
    """The class by name and ancestry, the signature, the representation, and every reference."""
    original: Any = drawn(Original(D))
    aliases, trained = {"adapter": original}, list(original.parameters())
    text, keys, signature = repr(original), list(original.state_dict()), inspect.signature(original.forward)
    attributes, kind = dict(original.__dict__), type(original)
    aim_fast.patch(original)
    assert isinstance(original, kind)
    assert (type(original).__name__, type(original).__module__) == (kind.__name__, kind.__module__)
    assert (repr(original), list(original.state_dict())) == (text, keys)
    assert inspect.signature(original.forward) == signature
    assert original.__dict__ == attributes
    for name in ("__len__", "__bool__"):
        assert not hasattr(type(original), name)
    calls.clear()
    aliases["adapter"](torch.randn(3, D)).square().mean().backward()
    assert len(calls) == 1
    assert all(p.grad is not None for p in trained)  # what an optimizer made before holds


def test_checkpoints_fit_both_ways(calls: list[dict]) -> None:
    ours, original = pair(calls)
    other = drawn(Original(48))
    ours.load_state_dict(other.state_dict(), strict=True)
    original.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(3, 48)
    torch.testing.assert_close(ours(x), other(x))
    ours.load_state_dict(drawn(Original(48)).state_dict(), assign=True)
    original.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(ours(x), original(x))
    assert len(calls) == 2


def test_weights_and_requires_grad_are_read_at_every_call(calls: list[dict]) -> None:
    ours, original = pair(calls)
    x = torch.randn(5, 48)
    ours(x)
    for trained in (False, True):
        for adapter in (ours, original):
            adapter.D_fc1.requires_grad_(trained)
            adapter.D_fc1.weight.data.mul_(2)
            adapter.D_fc2.weight = nn.Parameter(adapter.D_fc2.weight.detach().roll(1, 0))
            adapter.D_fc2.bias = None if trained else nn.Parameter(torch.ones(48))
        assert_same_training_step(ours, original, x)
        assert (ours.D_fc1.weight.grad is not None) is trained
    for adapter in (ours, original):
        adapter.requires_grad_(False)
    assert not ours(x).requires_grad
    assert len(calls) == 4


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool, calls: list[dict]) -> None:
    ours, original = pair(calls)

    class Checkpointed(nn.Module):
        def __init__(self, adapter: nn.Module) -> None:
            super().__init__()
            self.adapter = adapter

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.adapter, x, use_reentrant=reentrant)

    assert_same_training_step(Checkpointed(ours), Checkpointed(original), torch.randn(5, 48))
    assert len(calls) == 2


def test_functional_call_uses_the_weights_given(calls: list[dict]) -> None:
    ours, original = pair(calls)
    weights = {name: torch.randn_like(p) for name, p in original.named_parameters()}
    x = torch.randn(3, 48)
    torch.testing.assert_close(
        torch.func.functional_call(ours, weights, x), torch.func.functional_call(original, weights, x)
    )
    assert len(calls) == 1
