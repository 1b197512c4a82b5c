"""`patch` on every variant: what is taken gives the same results and gradients, what is not is left alone, and why."""

from __future__ import annotations

import copy
import random
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aim_fast
from aim_fast import layers
from original import Original
from patched import assert_same_step, drawn, patched_copy
from variants import TAKEN, D, Spatial, Temporal
from variants_refused import REFUSED, OptionalGate

pytestmark = pytest.mark.usefixtures("seed")
# Variants with dropout in them are fused in evaluation mode alone.
ONLY_EVALUATED = ("dropout", "adaptformer")


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.usefixtures("fused")
def test_taken(name: str, calls: list[dict]) -> None:
    make, inputs, formula = TAKEN[name]
    original = drawn(make())
    assert aim_fast.patch(original, dry_run=True).rows[0].why.startswith(formula)
    patched = patched_copy(original, calls)
    for module in (patched, original):
        module.train(name not in ONLY_EVALUATED)
    for shape in ((2, 7, D), (2, 3, 5, D)):
        assert_same_step(patched, original, inputs, torch.float32, *shape)
    assert len(calls) == 2
    assert_same_step(patched.bfloat16(), original.bfloat16(), inputs, torch.bfloat16, 2, 33, D)
    assert len(calls) == 3


@pytest.mark.parametrize("name", TAKEN)
def test_scale_and_weights_are_read_at_every_call(name: str, calls: list[dict]) -> None:
    make, inputs, _ = TAKEN[name]
    original = make().eval()
    patched = patched_copy(original, calls)
    for module in (original, patched):
        torch.manual_seed(1)
        drawn(module)
        if isinstance(getattr(module, "scale", None), (int, float)):
            module.scale = 3
        if isinstance(factor := getattr(module, "factor", None), Tensor):
            factor.fill_(3)
    assert_same_step(patched, original, inputs, torch.float32, 2, 7, D)
    assert len(calls) == 1


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, words = REFUSED[name]
    module = make()
    kind, before = type(module), copy.deepcopy(module.__dict__)
    report = aim_fast.patch(module)
    assert not report.taken
    assert words in report.refused[""], report.refused
    assert type(module) is kind
    assert str(module.__dict__) == str(before)


@pytest.mark.parametrize("make", [lambda: nn.Conv1d(D, D, 1), lambda: nn.Linear(D, D)], ids=["conv", "linear"])
def test_not_an_adapter_at_all(make: Any) -> None:
    assert aim_fast.patch(make()).rows == ()
    assert str(aim_fast.patch(make())) == "nothing looks like an adapter"


def test_optional_argument_beyond_the_operator_runs_as_written(calls: list[dict]) -> None:
    original = drawn(OptionalGate())
    patched = patched_copy(original, calls)
    x, gate = torch.randn(2, 3, 5, D)
    torch.testing.assert_close(patched(x), original(x))
    assert len(calls) == 1
    torch.testing.assert_close(patched(x, gate), original(x, gate), rtol=0, atol=0)
    torch.testing.assert_close(patched(x=x, gate=gate), original(x, gate), rtol=0, atol=0)
    assert len(calls) == 1
    torch.testing.assert_close(patched(x=x, gate=None), original(x))
    assert len(calls) == 2
    for bad in ((), (x, gate, gate)):
        with pytest.raises(TypeError):
            patched(*bad)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"add_residual": False}, {"residual": True}, {"add_residual": True, "residual": True}, {"residual": None}],
    ids=str,
)
def test_residual_from_outside_in_every_form(arguments: dict[str, Any], calls: list[dict]) -> None:
    original = drawn(TAKEN["adaptformer"][0]()).eval()
    patched = patched_copy(original, calls)
    x, residual = torch.randn(2, 3, 5, D)
    given = {name: residual if name == "residual" and value else value for name, value in arguments.items()}
    torch.testing.assert_close(patched(x, **given), original(x, **given))
    placed = (given.get("add_residual", True), given.get("residual"))
    torch.testing.assert_close(patched(x, *placed), original(x, *placed))
    assert len(calls) == 2
    # A residual that broadcasts is no residual of the operator.
    torch.testing.assert_close(patched(x, residual=residual[:1]), original(x, residual=residual[:1]))


def test_dropout_that_drops_runs_as_written(calls: list[dict]) -> None:
    original: Any = drawn(TAKEN["dropout"][0]())
    patched = patched_copy(original, calls)
    x = torch.randn(5, D)

    def both() -> list[Tensor]:
        results = []
        for module in (patched, original):
            torch.manual_seed(3)
            results.append(module(x))
        return results

    assert torch.equal(*both())
    assert not calls
    for module in (patched, original):
        module.drop.p = 0.0
    torch.testing.assert_close(*both())
    assert len(calls) == 1
    for module in (patched, original):
        module.drop.p = 0.5
        module.drop.eval()
    torch.testing.assert_close(*both())
    assert len(calls) == 2


def test_dropout_by_a_function_runs_as_written(calls: list[dict]) -> None:
    original: Any = drawn(TAKEN["adaptformer"][0]())
    patched = patched_copy(original, calls)
    x = torch.randn(5, D)
    results = []
    for module in (patched, original):
        torch.manual_seed(3)
        results.append(module(x))
    assert torch.equal(*results)
    assert not calls
    torch.testing.assert_close(patched.eval()(x), original.eval()(x))
    assert len(calls) == 1


def test_changed_attribute_runs_as_written(calls: list[dict]) -> None:
    original: Any = drawn(Original(D))
    patched = patched_copy(original, calls)
    x = torch.randn(5, D)
    for module in (original, patched):
        module.skip_connect = False
    torch.testing.assert_close(patched(x), original(x), rtol=0, atol=0)
    assert not calls
    patched.skip_connect = original.skip_connect = True
    torch.testing.assert_close(patched(x), original(x))
    assert len(calls) == 1


def test_changed_setting_in_a_dict_runs_as_written(calls: list[dict]) -> None:
    class Configured(Spatial):
        settings = {"sizes": [1, 2]}  # noqa: RUF012, as others write it

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if self.settings["sizes"][0] == 1 else x

    patched = patched_copy(drawn(Configured()), calls)
    x = torch.randn(5, D)
    patched(x)
    assert len(calls) == 1
    Configured.settings["sizes"][0] = 3
    assert torch.equal(patched(x), x)
    assert len(calls) == 1


def test_activation_is_read_at_every_call(calls: list[dict]) -> None:
    original: Any = drawn(Original(D))
    patched = patched_copy(original, calls)
    x = torch.randn(5, D)
    for act, name in ((nn.Tanh(), "tanh"), (nn.Mish(), None)):
        original.act = patched.act = act
        torch.testing.assert_close(patched(x), original(x))
        assert [call["activation"] for call in calls] == ["tanh"], name


def test_verification_leaves_everything_alone() -> None:
    """Random states, hooks, gradients, buffers, modes and weights are as before, whatever the caller's modes are."""
    module: Any = drawn(Original(D))
    module.register_buffer("seen", torch.zeros(1))
    ran: list[Any] = []
    for part in module.modules():
        part.register_forward_hook(lambda *args: ran.append(args))
        part.register_full_backward_hook(lambda *args: ran.append(args))
    handle = nn.modules.module.register_module_forward_hook(lambda *args: ran.append(args))
    module.D_fc1.eval().requires_grad_(False)
    before, states = copy.deepcopy(module.state_dict()), (torch.get_rng_state(), random.getstate())
    modes = [part.training for part in module.modules()]
    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with context, aim_fast.use_backend("eager"):
            report = aim_fast.patch(module)
        assert report.taken == ("",), str(report)
        assert aim_fast.unpatch(module) == ("",)
    assert not ran
    handle.remove()
    assert not layers.has_hooks(nn.Identity())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert modes == [part.training for part in module.modules()]
    assert [p.requires_grad for p in module.parameters()] == [False, False, True, True]
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_zero_weights_do_not_hide_a_difference() -> None:
    """As AIM initialises them, an adapter that applies its activation twice gives the results of one that does not."""
    module = REFUSED["act_twice"][0]()
    aim_fast.init_adapters(nn.ModuleDict({"S_Adapter": module}))
    x = torch.randn(3, D)
    assert torch.equal(module(x), x)
    assert not aim_fast.patch(module).taken


def test_without_verification_one_forward_decides() -> None:
    assert aim_fast.patch(Temporal(), verify=False).taken == ("",)
    assert aim_fast.patch(REFUSED["act_twice"][0](), verify=False).taken == ()
    assert aim_fast.patch(REFUSED["detached"][0](), verify=False).taken == ("",)


def test_on_the_meta_device() -> None:
    with torch.device("meta"):
        module: nn.Module = Spatial()
        assert aim_fast.patch(module).taken == ("",)
    assert module(torch.empty(3, D, device="meta")).is_meta
    module = drawn(module.to_empty(device="cpu"))
    original = Spatial()
    original.load_state_dict(module.state_dict())
    x = torch.randn(3, D)
    torch.testing.assert_close(module(x), original(x))


def test_forward_on_the_instance_is_refused() -> None:
    module = Original(D)
    module.forward = lambda x: x  # type: ignore[method-assign]
    assert "forward of its own on the instance" in aim_fast.patch(module).refused[""]


def test_generated_forward_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(Spatial())
    for module in (scripted, torch.fx.symbolic_trace(Spatial())):
        assert "forward is generated code" in aim_fast.patch(module).refused[""]


class Uncopied(Spatial):
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("held elsewhere")


def test_what_cannot_be_copied_is_refused() -> None:
    assert "cannot be copied (RuntimeError: held elsewhere)" in aim_fast.patch(Uncopied()).refused[""]
