"""`patch` on whole models: which modules it finds, how often, and what it reports."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import aim_fast
from original import Original
from patched import drawn
from variants import AsSequential, D, Temporal
from variants_refused import ActTwice, Mlp

pytestmark = pytest.mark.usefixtures("seed")


class Block(nn.Module):
    """Adapters in a block of AIM's kind, one of them wrapped, one shared by all blocks, one in a plain list."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(D, 2)
        self.ln = nn.LayerNorm(D)
        self.mlp = nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D))
        self.S_Adapter = Original(D)
        self.wrapped = nn.Sequential(nn.LayerNorm(D), Original(D))
        self.shared = shared
        self.again = shared
        self.twice = ActTwice()
        self.net = AsSequential()
        self.by_name = {"spatial": self.S_Adapter}
        self.outside = [Temporal()]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln(x), self.ln(x), self.ln(x))[0]
        x = self.wrapped(self.by_name["spatial"](x))
        x = x + self.shared(x) + self.outside[0](self.again(x))
        return self.net(self.twice(x)) + 0.1 * self.mlp(x)


def model(blocks: int = 2) -> Any:
    shared = Temporal()
    return drawn(nn.Sequential(*(Block(shared) for _ in range(blocks)), nn.Linear(D, 3)))


TABLE = """\
module                class               why
*.mlp            x 2  Sequential  refused  it widens 24 to 96: no bottleneck
*.S_Adapter      x 2  Original    taken    f(x) + x, gelu
*.wrapped.*      x 2  Original    taken    f(x) + x, gelu
0.shared              Temporal    taken    f(x), gelu
*.twice          x 2  ActTwice    refused  its forward applies the activation a second time, after the up-projection
*.net            x 2  AsSequential  taken    0.25 * f(x) + x, silu
7 of 11 taken"""


def test_report_is_a_table() -> None:
    text = str(aim_fast.patch(model()))
    assert [line.split() for line in text.splitlines()] == [line.split() for line in TABLE.splitlines()]
    columns = [
        line.index(word) for line, word in zip(text.splitlines(), ("class", "Sequential", "Original"), strict=False)
    ]
    assert len(set(columns)) == 1


def test_report_is_an_object() -> None:
    report = aim_fast.patch(model())
    shared = next(row for row in report.rows if row.path == "0.shared")
    assert shared.aliases == ("0.again", "1.shared", "1.again")
    assert report.taken[:3] == ("0.S_Adapter", "0.wrapped.1", "0.shared")
    assert report.refused["1.mlp"] == "it widens 24 to 96: no bottleneck"


def test_results_are_the_models(calls: list[dict]) -> None:
    original = model()
    patched = copy.deepcopy(original)
    aim_fast.patch(patched)
    calls.clear()
    x = torch.randn(5, 2, D)
    torch.testing.assert_close(patched(x), original(x))
    # Shared ones run twice in each block; one that hides in a plain list is found nowhere.
    assert len(calls) == 2 * 5


def test_dry_run_changes_nothing(calls: list[dict]) -> None:
    one = model()
    kinds = [type(module) for module in one.modules()]
    dry = aim_fast.patch(one, dry_run=True)
    assert [type(module) for module in one.modules()] == kinds
    assert str(dry).endswith("7 of 11 taken (dry run: nothing was changed)")
    calls.clear()
    one(torch.randn(5, 2, D))
    assert not calls
    assert aim_fast.patch(one).rows == dry.rows


def test_unpatch_restores() -> None:
    one = model()
    kinds = [type(module) for module in one.modules()]
    taken = aim_fast.patch(one).taken
    assert [type(module) for module in one.modules()] != kinds
    assert aim_fast.unpatch(one) == taken
    assert [type(module) for module in one.modules()] == kinds
    assert aim_fast.unpatch(one) == ()


def test_patching_again_takes_what_is_new() -> None:
    one = model(1)
    aim_fast.patch(one)
    one[0].twice = Temporal()
    report = aim_fast.patch(one)
    assert report.taken == ("0.twice",)
    assert report.refused["0.net"] == "it has been patched before"


def test_own_modules_are_named() -> None:
    assert aim_fast.patch(nn.Sequential(aim_fast.T_Adapter(D))).refused == {
        "0": "it is aim_fast's own, and fused already"
    }


def test_the_outermost_that_fits_is_taken() -> None:
    """A container inside is part of what is around it, or taken alone where that is refused."""
    one = nn.ModuleDict({"whole": AsSequential(), "part": _NormAround()})
    report = aim_fast.patch(one)
    assert report.taken == ("whole", "part.net")
    assert not report.refused


class _NormAround(AsSequential):
    def __init__(self) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(D)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.ln(x))


def test_one_class_for_one_plan() -> None:
    one = nn.ModuleList([Original(D), Original(D), Original(D, skip_connect=False)])
    aim_fast.patch(one)
    assert type(one[0]) is type(one[1])
    assert type(one[0]) is not type(one[2])


def test_unpatch_says_what_stands_on_top() -> None:
    one = nn.ModuleList([Temporal(), Original(D)])
    one[1].register_parameter("extra", nn.Parameter(torch.ones(2)))
    assert len(aim_fast.patch(one).taken) == 2
    parametrize.register_parametrization(one[1], "extra", nn.Identity())
    kind = type(one[0])
    with pytest.raises(ValueError, match="unpatch: 1 is a ParametrizedOriginal, made from the patched class"):
        aim_fast.unpatch(one)
    assert type(one[0]) is kind
    parametrize.remove_parametrizations(one[1], "extra")
    assert aim_fast.unpatch(one) == ("0", "1")


def test_a_whole_block_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block whose layers stand side by side looks like an adapter; it is refused at sight."""

    class Wide(Mlp):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up, self.ln = nn.Linear(D, 6), nn.Linear(6, D), nn.LayerNorm(D)

        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("copied")

    assert aim_fast.patch(Wide()).refused == {"": "it holds a third Linear (down)"}
