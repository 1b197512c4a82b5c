"""The CUDA row of the dispatch table and the operators' way to its kernels, with kernels and a GPU that are played."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import aim_fast
from aim_fast import available, dispatch, nvidia, ops, remembered, routing, triton_device, tuning
from aim_fast.dispatch import Advice, Backend, Call
from aim_fast.kernels import tiling
from judge import make_inputs
from test_triton_dispatch import call_of

H100 = tiling.Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132)
A100 = tiling.Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108)
ROW = next(row for row in aim_fast.backends() if row.name == "cuda")
TRITON = next(row for row in aim_fast.backends() if row.name == "triton")
FP32, BF16 = torch.float32, torch.bfloat16


def plans(index: int, D: int, H: int, dtype: torch.dtype, backward: bool) -> tuple[str, ...]:
    """Those of a library on an H100 whose wide kernels have no backward."""
    if dtype is FP32:
        return ("tiles/0",) if D % 4 == H % 4 == 0 else ()
    return ("hopper/0",) if D % 8 == H % 8 == 0 and (H <= 256 or (H == 320 and not backward)) else ()


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An H100 in the place of every device, without measurements, and both rows there as on such a machine."""
    monkeypatch.setenv("AIM_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path / "none")
    monkeypatch.setattr(tuning, "_tables", {})
    for module in (triton_device, nvidia):
        monkeypatch.setattr(module, "gpu", lambda index: H100)
    monkeypatch.setattr(nvidia, "cuda_archs", lambda: "80,90a")
    monkeypatch.setattr(nvidia, "cuda_plans", plans)
    triton_device.has_tiles.cache_clear()
    tuning.advice.cache_clear()
    monkeypatch.setattr(remembered, "_chosen", {})
    rows = [Backend(row.name, row.what, row.limits, "", row.advice) for row in (ROW, TRITON)]
    monkeypatch.setattr(dispatch, "backends", lambda: (*rows, aim_fast.backends()[-1]))


def test_it_is_not_chosen_unmeasured(h100: None) -> None:
    explanation = dispatch.select(call_of())
    assert explanation.backend == dispatch.choose(call_of()) == "triton"
    words = "cuda: never measured on this GPU at M = 50432, D = 768, H = 192 on NVIDIA H100 80GB HBM3; "
    assert f"{words}use_backend('cuda') or python -m aim_fast tune" in str(explanation)
    with aim_fast.use_backend("cuda"):
        assert str(dispatch.select(call_of())) == "backend: cuda\n  cuda: asked for by name"


@pytest.mark.parametrize(
    ("forward", "train", "in_forward", "in_train"),
    [
        ({"cuda": 1.0, "triton": 2.0, "eager": 3.0}, {"cuda": 3.0, "triton": 2.0, "eager": 1.0}, "cuda", "eager"),
        ({"cuda": 2.0, "triton": 1.0, "eager": 3.0}, {"cuda": 2.0, "triton": 3.0, "eager": 4.0}, "triton", "cuda"),
    ],
)
def test_a_measurement_decides(
    h100: None, forward: dict[str, float], train: dict[str, float], in_forward: str, in_train: str
) -> None:
    found = {kernel: tiling.plans(H100, kernel, "half", 50432, 768, 192)[0] for kernel in tiling.KERNELS}
    cuda = dict.fromkeys(tuning.DIRECTIONS, "hopper/0")
    tuning.save(H100, {("half", 768, 192): [tuning.Row(50432, found, cuda, forward, train)]}, {})
    with torch.no_grad():
        assert dispatch.choose(call_of()) == dispatch.select(call_of()).backend == in_forward
        assert dispatch.choose(call_of()._replace(train=True)) == in_train
    assert dispatch.choose(call_of()) == in_train
    assert "measured on this GPU at M = 50432" in str(dispatch.select(call_of()))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (call_of(dtype=torch.float64), "takes float32, bfloat16 and float16 only"),
        (call_of(dtype=FP32, H=198), "in float32 multiples of 4"),
        (call_of()._replace(device="cpu"), "CUDA tensors only"),
        (call_of(H=196), "multiples of 8"),
        (call_of(H=320), "H up to 256"),
        (call_of(M=2**31), "fewer than 2"),
    ],
    ids=["fp64", "fp32_odd_hidden", "cpu", "odd_hidden", "without_backward", "many_rows"],
)
def test_what_it_does_not_take(h100: None, call: Call, words: str) -> None:
    assert f"cuda: {words}" in str(dispatch.select(call)) or words in str(dispatch.select(call))
    with aim_fast.use_backend("cuda"), pytest.raises(ValueError, match=f"cannot take this call: .*{words}"):
        dispatch.select(call)


def test_what_it_takes(h100: None) -> None:
    """Autocast too, fp32 tensors and products in 16 bits; and products in fp32."""
    with aim_fast.use_backend("cuda"):
        half = call_of(dtype=FP32)._replace(dtype=torch.float16)
        for call in (call_of(), call_of(w=FP32), half, call_of(dtype=FP32), call_of(M=0)):
            assert dispatch.choose(call) == "cuda"


@pytest.mark.parametrize(
    ("archs", "gpu", "taken"),
    [
        ("80,90a", A100, True),
        ("80,90a", tiling.Gpu("Tesla V100", (7, 0), 80), False),
        ("90a", A100, False),
        ("90a", H100, True),
        ("80", tiling.Gpu("NVIDIA B200", (10, 0), 148), True),
    ],
)
def test_capability(h100: None, monkeypatch: pytest.MonkeyPatch, archs: str, gpu: tiling.Gpu, taken: bool) -> None:
    monkeypatch.setattr(nvidia, "cuda_archs", lambda: archs)
    monkeypatch.setattr(nvidia, "gpu", lambda index: gpu)
    words = "needs compute capability 8.0 or higher, and code for it in AIM_FAST_CUDA_ARCHS"
    assert any(words in text for text in dispatch.backends()[0].refusals(call_of())) is not taken


@pytest.mark.parametrize(
    ("archs", "cuda", "built", "reason"),
    [
        ("", "13.0", {"cuda": "left out: no nvcc; install it"}, "has no CUDA kernels: left out: no nvcc; install it"),
        ("", "13.0", {}, "has no CUDA kernels: install the CUDA toolkit, then reinstall aim_fast"),
        ("80,90a", None, {}, "is built without CUDA; install a CUDA build of torch"),
        ("80,90a", "13.0", {}, ""),
        ("emulated", None, {}, ""),
    ],
)
def test_why_it_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, archs: str, cuda: str | None, built: dict[str, str], reason: str
) -> None:
    (tmp_path / "_build_info.json").write_text(json.dumps(built))
    monkeypatch.setattr(available, "_HERE", tmp_path)
    monkeypatch.setattr(nvidia, "cuda_archs", lambda: archs)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    found = available.without_cuda()
    assert reason in found if reason else found == ""
    assert ("unset AIM_FAST_LIBRARY" in available.without_cpu()) is (archs == "emulated")


# What follows runs in a process where the operators of CPU tensors are routed, as those of CUDA tensors are elsewhere.


@contextmanager
def played(cuda_is_best: bool = False, there: Sequence[str] = ("cuda", "triton")) -> Iterator[list[str]]:
    """Backends whose kernels are the composition and leave their name; the automatic choice is cuda or eager."""
    seen: list[str] = []

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            seen.append(name)
            return function(*arguments)

        return run

    def advising(choose: bool) -> Callable[[Call], Advice]:
        return lambda call: Advice(choose, "")

    rows = [Backend(name, name, (), "", advising(name == "cuda" and cuda_is_best)) for name in there]
    with pytest.MonkeyPatch.context() as patch:
        for name in (*there, "eager"):
            patch.setitem(routing._FORWARD, name, noting(name, ops._forward_reference))
            patch.setitem(routing._BACKWARD, name, noting(name, ops._backward_reference))
        patch.setattr(dispatch, "backends", lambda: (*rows, aim_fast.backends()[-1]))
        yield seen


def step(**more: Any) -> Tensor:
    return aim_fast.adapter(**make_inputs((7, 24), 8, requires_grad=True), **more).sum()


def elsewhere(function: Callable[[], Any]) -> None:
    """As autograd runs the backward of CUDA tensors."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def check_the_choice_holds_for_the_backward() -> None:
    for name in ("cuda", "triton"):
        with played() as seen:
            with aim_fast.use_backend(name):
                losses = [step(), step(recompute=True)]
            for loss in losses:
                elsewhere(loss.backward)
            assert seen == [name] * 4
            with aim_fast.use_backend(name), torch.no_grad():
                step()
            assert seen == [name] * 5
    assert routing._said.backend == ""


def check_operators_by_themselves() -> None:
    """Of a graph, or called by hand: forced by name, else the automatic choice; what raises leaves nothing behind."""
    tensors = list(make_inputs((7, 24), 8).values())
    call = (*tensors, None, None, None, "gelu", False, 1.0, FP32)
    for name, best in (("cuda", False), ("triton", False), ("auto", True), ("auto", False), ("eager", True)):
        with played(best) as seen, aim_fast.use_backend(name):
            y, z, _ = ops.adapter_forward(*call, True, True)
            ops.adapter_backward(y, tensors[0], z, *tensors[1:], None, None, "gelu", False, 1.0, FP32, FP32, 63)
            assert seen == 2 * [("cuda" if best else "eager") if name == "auto" else name]
    with played() as seen, aim_fast.use_backend("cuda"):
        with pytest.raises(Exception, match=r".+"):
            routing.on("triton", ops.adapter_forward)(*call)  # one argument short
        assert routing._said.backend == ""
    with played(there=["cuda"]) as seen:  # and not what AIM_FAST_BACKEND names
        ops.adapter_forward(*call, True, True)
        assert seen == ["eager"]


def check_compiled_graphs() -> None:
    """What is traced holds the operators, for which the choice is made where they run."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda **tensors: aim_fast.adapter(**tensors).sum(), backend="aot_eager", fullgraph=True)
    tensors = make_inputs((7, 24), 8, requires_grad=True)
    with played() as seen, aim_fast.use_backend("cuda"):
        loss = compiled(**tensors)
        loss.backward()
        assert seen == ["cuda", "cuda"]
        loss = compiled(**tensors)
        elsewhere(loss.backward)
        assert seen[2:] == ["cuda", "triton"]  # AIM_FAST_BACKEND of the process, in another thread


def check_reasons_in_the_interpreter() -> None:
    for name in ("cpu", "cuda"):
        with aim_fast.use_backend(name), pytest.raises(ValueError, match="interpreter has taken its place"):
            step()


@pytest.mark.parametrize(
    "check",
    [
        check_the_choice_holds_for_the_backward,
        check_operators_by_themselves,
        check_compiled_graphs,
        check_reasons_in_the_interpreter,
    ],
)
def test_routing(interpreted: Callable[..., Any], check: Callable[[], None]) -> None:
    interpreted(check)
