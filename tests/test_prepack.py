"""Weights kept packed: the same bits as without, for every change that can come over them."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aim_fast
from aim_fast import packed
from aim_fast.testing import assert_within_budget
from judge import make_inputs

D, H = 72, 20
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    packed._pairs.clear()


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For every call of the kernel on a buffer, whether the buffer fitted."""
    seen: list[bool] = []
    real = torch.ops.aim_fast.cpu_forward_prepacked

    class Noted:
        def __call__(self, *arguments: Any) -> Any:
            y, fitted = real(*arguments)
            seen.append(fitted)
            return y, fitted

    monkeypatch.setattr(torch.ops.aim_fast, "cpu_forward_prepacked", Noted())
    return seen


def drawn(dtype: torch.dtype = torch.float32, skip: bool = True) -> aim_fast.Adapter:
    """An adapter with weights that are not zero."""
    adapter = aim_fast.Adapter(D, H / D, skip_connect=skip).to(dtype)
    values = make_inputs((1, D), H, dtype)
    for parameter, name in zip(adapter.parameters(), ("w1", "b1", "w2", "b2"), strict=True):
        parameter.data.copy_(values[name])
    return adapter


def without(adapter: nn.Module, x: Tensor, **options: Any) -> Tensor:
    """What the same call gives on weights packed by itself."""
    with torch.no_grad():
        return copy.deepcopy(adapter)(x, **options)


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 7, 12, 40, 197])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_results(isa: str, seed: None, used: list[bool], dtype: torch.dtype, rows: int) -> None:
    adapter, x = drawn(dtype), torch.randn(rows, D).to(dtype)
    expected = without(adapter, x, scale=0.5, residual=x)
    with aim_fast.use_backend("eager"):
        truth = without(copy.deepcopy(adapter).double(), x.double(), scale=0.5, residual=x.double())
    assert aim_fast.prepack(adapter) == 1
    with torch.no_grad():
        for _ in range(2):
            y = adapter(x, scale=0.5, residual=x)
            # Few rows may take another way through the kernel, which sums in another order.
            assert_within_budget("y", y, expected, truth)
    assert used == [True, True]
    if rows > 16:
        assert torch.equal(y, expected)


CHANGES: dict[str, Callable[[nn.Parameter], Any]] = {
    "in place": lambda w: w.mul_(2.0),
    "through data": lambda w: w.data.mul_(2.0),
    "an optimizer": lambda w: torch.optim.SGD([w], 1.0).step(lambda: w.grad),
    "data replaced": lambda w: setattr(w, "data", w.detach() * 2.0),
    "filled": lambda w: nn.init.zeros_(w),
}


@pytest.mark.parametrize("which", ["D_fc1", "D_fc2"])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_packed_again(fused: None, used: list[bool], change: str, which: str) -> None:
    adapter, x = drawn(), torch.randn(40, D)
    weight = getattr(adapter, which).weight
    aim_fast.prepack(adapter)
    with torch.no_grad():
        adapter(x)
        weight.grad = torch.randn_like(weight)
        CHANGES[change](weight)
        expected = without(adapter, x)
        used.clear()
        assert torch.equal(adapter(x), expected)
        assert torch.equal(adapter(x), expected)
    assert used[-1], "the buffer was not renewed"


def test_replaced_parameters_are_not_taken_for_the_old_ones(fused: None, used: list[bool]) -> None:
    adapter, x = drawn(), torch.randn(40, D)
    aim_fast.prepack(adapter)
    adapter.D_fc2.weight = nn.Parameter(adapter.D_fc2.weight.detach() * 2)
    with torch.no_grad():
        assert torch.equal(adapter(x), without(adapter, x))
    assert used == []
    aim_fast.prepack(adapter)
    with torch.no_grad():
        adapter(x)
    assert used == [True]


def test_another_instruction_set_packs_for_itself(cpu_library: None, used: list[bool]) -> None:
    adapter, x = drawn(), torch.randn(40, D)
    aim_fast.prepack(adapter)
    before = torch.ops.aim_fast.cpu_isa()
    with torch.no_grad():
        adapter(x)
        torch.ops.aim_fast.cpu_set_isa("portable")
        try:
            assert torch.equal(adapter(x), without(adapter, x))
            adapter(x)
        finally:
            torch.ops.aim_fast.cpu_set_isa(before)
    assert used[0]
    assert used[-1]


def test_every_compute_dtype_has_its_own_buffer(fused: None, used: list[bool]) -> None:
    adapter, x = drawn(), torch.randn(40, D)
    aim_fast.prepack(adapter)
    with torch.no_grad():
        for dtype in (torch.bfloat16, torch.float16, torch.bfloat16):
            with torch.autocast("cpu", dtype=dtype):
                assert torch.equal(adapter(x), without(adapter, x))
        adapter(x)
    assert used == [True] * 4


def test_gradients_do_as_before(fused: None, used: list[bool]) -> None:
    adapter, x = drawn(), torch.randn(40, D)
    aim_fast.prepack(adapter)
    adapter(x).sum().backward()
    assert adapter.D_fc1.weight.grad is not None
    assert used == []
    adapter.requires_grad_(False)
    adapter(x)  # nothing to differentiate
    assert used == [True]


def test_inference_mode(fused: None, used: list[bool]) -> None:
    with torch.inference_mode():
        adapter, x = drawn(), torch.randn(40, D)
        aim_fast.prepack(adapter)
        assert torch.equal(adapter(x), without(adapter, x))
        adapter.D_fc1.weight.mul_(2.0)  # no version counter tells
        assert torch.equal(adapter(x), without(adapter, x))
    assert used == [True, False]


def test_of_a_whole_model_and_ended(fused: None, used: list[bool]) -> None:
    class Theirs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.act, self.up = nn.Linear(D, H), nn.GELU(), nn.Linear(H, D)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.up(self.act(self.down(x)))

    model = nn.Sequential(drawn(), nn.LayerNorm(D), Theirs(), drawn(skip=False))
    assert aim_fast.patch(model).taken
    x = torch.randn(40, D)
    expected = without(model, x)
    assert aim_fast.prepack(model) == 3
    with torch.no_grad():
        assert torch.equal(model(x), expected)
    assert used == [True] * 3
    assert aim_fast.prepack(model, keep=False) == 3
    with torch.no_grad():
        assert torch.equal(model(x), expected)
    assert used == [True] * 3
    assert packed._pairs == {}


def test_lives_no_longer_than_the_weights(fused: None) -> None:
    adapter = drawn()
    aim_fast.prepack(adapter)
    with torch.no_grad():
        adapter(torch.randn(3, D))
    assert len(packed._pairs) == 1
    del adapter
    gc.collect()
    assert packed._pairs == {}


def test_state_is_left_alone(fused: None, tmp_path) -> None:
    """What is kept shows neither in the state nor in a copy or a file."""
    adapter, x = drawn(), torch.randn(40, D)
    keys = list(adapter.state_dict())
    aim_fast.prepack(adapter)
    with torch.no_grad():
        y = adapter(x)
        assert list(adapter.state_dict()) == keys
        torch.save(adapter, tmp_path / "adapter.pt")
        again = torch.load(tmp_path / "adapter.pt", weights_only=False)
        assert torch.equal(again(x), y)
    assert len(packed._pairs) == 1


def test_compiled_as_before(fused: None, used: list[bool]) -> None:
    adapter, x = drawn(), torch.randn(40, D)
    aim_fast.prepack(adapter)
    with torch.no_grad():
        compiled = torch.compile(adapter, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), adapter(x))
    assert used == [True]


def test_foreign_buffer_is_refused_by_the_kernel(fused: None) -> None:
    """A buffer of the wrong size, layout or content is not read as weights."""
    adapter, x = drawn(), torch.randn(40, D)
    w1, b1, w2, b2 = (p.detach() for p in adapter.parameters())
    expected = without(adapter, x)
    good = torch.ops.aim_fast.cpu_prepack(w1, w2, torch.float32)
    call = (w1, b1, w2, b2, None, None, None, "gelu", True, 1.0, torch.float32)
    for buffer in (
        torch.zeros(3),
        torch.zeros(0),
        torch.zeros_like(good),
        good[:-16],
        good.roll(1),
        good.repeat(2)[::2],
    ):
        y, fitted = torch.ops.aim_fast.cpu_forward_prepacked(x, buffer, *call)
        assert torch.equal(y, expected)
        assert not fitted
    half = good.to(torch.float64)
    with pytest.raises(RuntimeError, match="prepacked buffer"):
        torch.ops.aim_fast.cpu_forward_prepacked(x, half, *call)
