"""What owners do to an adapter after they made it: hooks, other weights, copies, other dtypes."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from changes import CHANGES
from original import PAIRS, assert_same_training_step, pair

pytestmark = pytest.mark.usefixtures("seed")


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__[1:])
def test_changed_child_is_honoured(change: Callable[[Any], None], calls: list[dict]) -> None:
    """A child that does more than nn.Linear or its activation runs as written, for as long as it does."""
    ours, original = pair()
    change(ours)
    torch.manual_seed(1)
    change(original)
    original.load_state_dict(ours.state_dict(), strict=True)
    assert_same_training_step(ours, original, torch.randn(5, 48))
    assert not calls


def test_removed_hook_is_fused_again(calls: list[dict]) -> None:
    ours, _ = pair()
    handle = ours.D_fc1.register_forward_hook(lambda linear, args, output: None)
    x = torch.randn(3, 48)
    first = ours(x)
    handle.remove()
    torch.testing.assert_close(ours(x), first)
    assert len(calls) == 1


def test_hooks_for_all_modules_run_on_the_children(calls: list[dict]) -> None:
    """What counts FLOP or traces modules hooks into every call."""
    ours, _ = pair()
    seen: list[type] = []
    x = torch.randn(3, 48)
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(type(module)))
    y = ours(x)
    handle.remove()
    assert seen == [nn.Linear, nn.GELU, nn.Linear, type(ours)]
    assert not calls
    torch.testing.assert_close(ours(x), y)
    assert len(calls) == 1


def test_module_hooks_run(calls: list[dict]) -> None:
    """Hooks on the adapter itself work as on any module, and it stays fused."""
    ours, _ = pair()
    ours.register_forward_hook(lambda adapter, args, output: output * 0)
    assert (ours(torch.randn(3, 48)) == 0).all()
    assert len(calls) == 1


def test_linears_without_bias(calls: list[dict]) -> None:
    ours, original = pair()
    for adapter in (ours, original):
        adapter.D_fc1.bias = adapter.D_fc2.bias = None
    assert_same_training_step(ours, original, torch.randn(5, 48))
    assert len(calls) == 1


def test_weights_are_read_at_every_call() -> None:
    ours, original = pair()
    x = torch.randn(5, 48)
    ours(x)
    for adapter in (ours, original):
        adapter.D_fc1.weight.data.mul_(2)
        adapter.D_fc2.bias.data.add_(1)
        adapter.D_fc2.weight = nn.Parameter(adapter.D_fc2.weight.detach().roll(1, 0))
    torch.testing.assert_close(ours(x), original(x))


def test_requires_grad_is_read_at_every_call() -> None:
    ours, original = pair()
    x = torch.randn(5, 48)
    for trained in (False, True):
        for adapter in (ours, original):
            adapter.D_fc1.requires_grad_(trained)
        assert_same_training_step(ours, original, x)
        assert (ours.D_fc1.weight.grad is not None) is trained
    for adapter in (ours, original):
        adapter.requires_grad_(False)
    assert not ours(x).requires_grad
    assert_same_training_step(ours, original, x)


def _pickled(adapter: Any) -> Any:
    return pickle.loads(pickle.dumps(adapter))


def _saved(adapter: Any) -> Any:
    file = io.BytesIO()
    torch.save(adapter, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("clone", [copy.deepcopy, _pickled, _saved])
@pytest.mark.parametrize("name", PAIRS)
def test_copies_are_whole_and_independent(clone: Callable, name: str, calls: list[dict]) -> None:
    ours, _ = pair(name)
    x = torch.randn(3, 48)
    expected = ours(x)
    other = clone(ours)
    assert type(other) is type(ours)
    assert torch.equal(other(x), expected)
    assert len(calls) == 2
    with torch.no_grad():
        other.D_fc2.weight.zero_()
    assert torch.equal(ours(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_module_in_another_dtype(dtype: torch.dtype) -> None:
    ours, original = pair()
    exact = copy.deepcopy(original).double()
    x = torch.randn(33, 48).to(dtype)
    ours.to(dtype)
    y = ours(x)
    assert y.dtype is dtype
    # Weights round to the dtype once, so a few of its units are all that may differ.
    assert (y.double() - exact(x.double())).abs().max() < 8 * torch.finfo(dtype).eps
