"""The checks that come before timing on a device: what they catch, what they count, on CPU tensors."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import aim_fast
import device_checks
from numeric_cases import CASES

pytestmark = pytest.mark.usefixtures("fused")

real = aim_fast.adapter


def test_every_name_is_a_regime() -> None:
    for names in (device_checks.ESSENTIAL, device_checks.REPEATED, device_checks.CAPTURED, device_checks.SMALL):
        assert set(names) <= set(CASES)
        assert len(set(names)) == len(names)


def test_all_adds_the_rest() -> None:
    few, every = ([label for label, _ in device_checks.checks(["numeric"], name)] for name in ("essential", "all"))
    assert every[: len(few)] == few
    assert sorted(every) == sorted(f"numeric {name}" for name in CASES)


def wrong(x: Tensor, *rest, **options) -> Tensor:
    """The last row is a hundredth too large."""
    y = real(x, *rest, **options)
    return y * torch.cat([torch.ones(x.shape[0] - 1), torch.full((1,), 1.01)]).view(-1, 1).to(y.dtype)


def drifting() -> Callable[..., Tensor]:
    """Every fourth call gives other bits."""
    calls = [0]

    def call(*arguments, **options) -> Tensor:
        calls[0] += 1
        y = real(*arguments, **options)
        return torch.nextafter(y, y + 1) if calls[0] % 4 == 0 else y

    return call


def of_this_thread() -> Callable[..., Tensor]:
    """The operator, in the thread that asks for it alone."""
    real, home = aim_fast.adapter, threading.get_ident()

    def call(*arguments, **options) -> Tensor:
        if threading.get_ident() != home:
            raise RuntimeError("no context here")
        return real(*arguments, **options)

    return call


@pytest.mark.parametrize(
    ("kind", "fault", "case", "text"),
    [
        ("numeric", wrong, "image", "y: error"),
        ("repeat", drifting(), "scale_one", "other bits in y at run 3"),
        ("thread", of_this_thread(), "image_bf16", "RuntimeError: no context here"),
    ],
)
def test_a_wrong_kernel_fails(
    kind: str, fault: Callable, case: str, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(device_checks.REGIMES, "essential", ((case,), (case,)))
    assert device_checks.main([kind]) == 0
    monkeypatch.setattr(aim_fast, "adapter", fault)
    assert device_checks.main([kind]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 checks of cpu on cpu, 0 failed"
    assert lines[1].startswith(f"FAILED {kind} {case}: {text}")
    assert lines[2] == "1 checks of cpu on cpu, 1 failed"


Step = Callable[[], list[Tensor]]


def replayed(step: Step) -> tuple[list[Tensor], Callable[[], None]]:
    """What a CUDA graph does, without one: the outputs are computed again where they lie."""
    outputs = step()

    def replay() -> None:
        for target, value in zip(outputs, step(), strict=True):
            target.detach().copy_(value.detach())

    return outputs, replay


def frozen(step: Step) -> tuple[list[Tensor], Callable[[], None]]:
    """A graph that has kept the old x: a call copied it outside the capture."""
    outputs = step()
    before = [t.detach().clone() for t in outputs]

    def replay() -> None:
        for target, value in zip(outputs, before, strict=True):
            target.detach().copy_(value)

    return outputs, replay


def half(step: Step) -> tuple[list[Tensor], Callable[[], None]]:
    """The last output was not captured."""
    outputs, replay = replayed(step)
    return [*outputs[:-1], outputs[-1].detach().clone()], replay


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", ["prime_ragged", "sample_scale"])
def test_capture_is_held_against_plain_calls(name: str, gradients: bool) -> None:
    device_checks.assert_captured(name, gradients, replayed)
    for faulty in (frozen, half):
        with pytest.raises(AssertionError, match="the replay differs in results"):
            device_checks.assert_captured(name, gradients, faulty)


def test_what_may_be_refused() -> None:
    """Of the essential regimes nothing; of the CUDA kernels' what their row in the table of backends leaves out."""
    taken = {name for name in device_checks.ESSENTIAL if device_checks.must_be_taken(name, "cuda")}
    assert {"image_bf16", "image_fp16", "one_row_bf16", "transposed_bf16", "sample_scale_bf16"} <= taken
    assert {"image", "one_row", "dinov2"} <= taken
    assert not taken & {"sam_h_bf16", "h196_fp16", "prime_ragged", "prime_ragged_bf16", "long_bf16"}
    assert all(device_checks.must_be_taken(name, "triton") for name in device_checks.ESSENTIAL)
    assert not device_checks.must_be_taken("few_wide", "triton")


def _refuse() -> None:
    raise ValueError("adapter: backend 'triton' cannot take this call: no tile")


def _crash() -> None:
    raise RuntimeError("illegal memory access\n")


def test_outcomes_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    def nothing() -> None:
        pass

    essential = device_checks.ESSENTIAL[0]
    todo = [
        ("numeric a", nothing),
        ("numeric few_wide", _refuse),
        (f"numeric {essential}", _refuse),
        ("repeat b", _crash),
    ]
    count = device_checks.run(todo, 60.0)
    assert str(count) == "3 checks of cpu on cpu, 2 failed, 1 beyond its limits (few_wide)"
    assert count.failures[1] == "repeat b: RuntimeError: illegal memory access"
    assert count.failures[0].startswith(f"numeric {essential}: ValueError")
    assert capsys.readouterr().out.count("FAILED") == 2
    assert str(device_checks.run(todo, -1.0)) == "0 checks of cpu on cpu, 0 failed, 4 not begun for want of time"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "kill"])
def test_a_run_that_is_stopped_counts(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A signal in the middle of a check, and another while it counts."""

    def interrupted() -> None:
        signal.raise_signal(number)

    def never() -> None:
        raise AssertionError("begun after the signal")

    todo = [("numeric a", lambda: None), ("repeat b", interrupted), ("graph c", never), ("graph d", never)]
    monkeypatch.setattr(device_checks, "checks", lambda kinds, regimes: todo)
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        signal.signal(number, device_checks.stop)
        assert device_checks.main(["repeat"]) == 130
        signal.raise_signal(number)
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
    said = capsys.readouterr().out
    summary = "1 checks of cpu on cpu, 0 failed, stopped in repeat b for want of time, 2 not begun for want of time"
    assert said == f"{summary}\n"
