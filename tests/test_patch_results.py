"""What a patched module returns: a tensor of its own, eager's dtype, exact for zero weights; and rarer results."""

from __future__ import annotations

import operator
import pickle

import pytest
import torch
from torch import nn

import aim_fast
from original import Original
from patched import drawn, patched_copy
from variants import TAKEN, D, LearnedHere, Spatial, Temporal

pytestmark = pytest.mark.usefixtures("seed")


def test_result_may_be_written_into() -> None:
    """Users add to what an adapter returns; x and the gradients know nothing of it."""
    for make in (Spatial, Temporal):
        module = drawn(make())
        aim_fast.patch(module)
        x = torch.randn(3, D, requires_grad=True)
        kept = x.detach().clone()
        y = module(x)
        expected = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
        y += 1
        y[0] = 0
        assert torch.equal(x, kept)
        dx = torch.autograd.grad(y.sum(), x)[0]
        torch.testing.assert_close(dx[1:], expected[1:])
        assert (dx[0] == 0).all()


@pytest.mark.parametrize(("skip", "key"), [(True, "S_Adapter"), (False, "MLP_Adapter")])
def test_initialisation_after_patching(skip: bool, key: str, calls: list[dict]) -> None:
    """With AIM's zero D_fc2 an adapter with skip returns x bit for bit, one without exactly zero."""
    model = nn.ModuleDict({key: Original(D, skip_connect=skip)})
    aim_fast.patch(model)
    calls.clear()
    aim_fast.init_adapters(model)
    x = torch.randn(2, 7, D) * 10 ** torch.linspace(-6, 6, D)
    for dtype in (torch.float32, torch.bfloat16):
        given = x.to(dtype)
        y = model[key].to(dtype)(given)
        assert torch.equal(y, given if skip else torch.zeros_like(given))
        assert y.data_ptr() != given.data_ptr()
    assert len(calls) == 2


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, D)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_output_dtype_is_that_of_eager(shape: tuple[int, ...], dtype: torch.dtype, calls: list[dict]) -> None:
    """A trained scale in fp32 widens what it multiplies, one without dimensions does not."""
    original = drawn(LearnedHere(*shape))
    ours = patched_copy(original, calls)
    x = torch.randn(2, 3, D)
    with torch.autocast("cpu", dtype):
        ours_y, theirs = ours(x), original(x)
    assert ours_y.dtype is theirs.dtype
    assert (ours_y - theirs).abs().max() <= 8 * torch.finfo(dtype).eps * theirs.abs().max()
    assert len(calls) == 1


def test_hidden_activation_is_computed_when_looked_at(calls: list[dict]) -> None:
    """It is one of three results, in a tuple in every other way, and never of weights that have changed since."""
    original = drawn(TAKEN["three_results"][0]())
    ours = patched_copy(original, calls)
    x, residual = torch.randn(2, 3, D)
    results, expected = ours(x, residual), original(x, residual)
    assert isinstance(results, tuple)
    joined = operator.add(results, (1,))
    for found in (results[1], results[-2], results[:2][1], list(results)[1], (*results, 1)[1], joined[1]):
        assert torch.equal(found, expected[1])
    assert results[1] is results[-2]
    assert torch.equal(pickle.loads(pickle.dumps(ours(x, residual)))[1], expected[1])
    with torch.no_grad():
        unread = ours(x, residual)
        ours.D_fc1.weight.mul_(2)
    with pytest.raises(RuntimeError, match="has been changed in place since the call"):
        unread[1]
    with torch.inference_mode():
        assert ours(x.clone(), residual)[1].shape == (3, 6)
