"""The Triton row of the dispatch table: when it is there, what it takes, and how it is chosen, without a GPU."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import aim_fast
from aim_fast import available, dispatch, nvidia, remembered, triton_device, tuning
from aim_fast.dispatch import Call
from aim_fast.kernels import tiling
from judge import make_inputs
from test_ops import LAYOUTS, backward_arguments, describe, fake, forward_arguments

H100 = tiling.Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132)
ROW = next(row for row in aim_fast.backends() if row.name == "triton")


def call_of(M: int = 50432, H: int = 192, dtype: torch.dtype = torch.bfloat16, w: torch.dtype | None = None) -> Call:
    """A call on the first CUDA device, described: its tensors have a device and a shape, and no memory."""
    x = torch.empty(M, 768, dtype=dtype, device="meta")
    w1 = torch.empty(H, 768, dtype=w or dtype, device="meta")
    tensors = (x, w1, None, w1.t(), None, None, None, None)
    return Call("cuda", tensors, dtype, False)


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """An H100 in the place of every device, without measurements, and the row there as on such a machine."""
    monkeypatch.setenv("AIM_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path / "none")
    monkeypatch.setattr(tuning, "_tables", {})
    for module in (triton_device, nvidia):
        monkeypatch.setattr(module, "gpu", lambda index: H100)
    triton_device.has_tiles.cache_clear()
    tuning.advice.cache_clear()
    monkeypatch.setattr(remembered, "_chosen", {})
    row = dispatch.Backend(ROW.name, ROW.what, ROW.limits, "", ROW.advice)
    eager = aim_fast.backends()[-1]
    monkeypatch.setattr(dispatch, "backends", lambda: (row, eager))


def test_many_rows_are_fused_by_estimate(h100: None) -> None:
    with torch.no_grad():
        explanation = dispatch.select(call_of())
    assert explanation.backend == "triton"
    assert "for a forward, estimated from counted bytes and FLOP, not measured, at M = 50432" in str(explanation)
    assert "for a train step" in str(dispatch.select(call_of()))


def test_what_stands_around_the_branch_counts(h100: None) -> None:
    """Eager needs passes of its own for skip; ViT-L without them is even, by estimate."""
    x, w1 = torch.empty(65792, 1024, device="meta").bfloat16(), torch.empty(256, 1024, device="meta").bfloat16()
    tensors = (x, w1, None, w1.t(), None, None, None, None)
    with torch.no_grad():
        assert dispatch.select(Call("cuda", tensors, torch.bfloat16, False)).backend == "eager"
        assert dispatch.select(Call("cuda", tensors, torch.bfloat16, True)).backend == "triton"


def test_few_rows_go_to_eager_by_estimate(h100: None) -> None:
    explanation = dispatch.select(call_of(M=7))
    assert explanation.backend == "eager"
    assert "triton: not worth it at M = 7" in str(explanation)
    with aim_fast.use_backend("triton"):
        assert dispatch.select(call_of(M=7)).backend == "triton"


def test_a_measurement_replaces_the_estimate(h100: None) -> None:
    plans = {kernel: tiling.plans(H100, kernel, "half", 50432, 768, 192)[0] for kernel in tiling.KERNELS}
    times = {"triton": 2e-5, "eager": 1e-5}
    rows = {("half", 768, 192): [tuning.Row(50432, plans, {}, times, times)]}
    tuning.save(H100, rows, {})
    explanation = dispatch.select(call_of())
    assert explanation.backend == "eager"
    assert "20 us against eager's 10 us for a train step, measured on this GPU at M = 50432" in str(explanation)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (call_of(H=520), "H up to 512"),
        (call_of(H=520, dtype=torch.float32), "H up to 512"),
        (call_of(H=520, w=torch.float32), "H up to 512"),
        (call_of(dtype=torch.float64), "float32, bfloat16 and float16 only"),
        (call_of()._replace(device="cpu"), "CUDA tensors only"),
    ],
    ids=["wide_hidden", "fp32", "fp32_weights", "fp64", "cpu"],
)
def test_what_it_does_not_take(h100: None, call: Call, words: str) -> None:
    explanation = dispatch.select(call)
    assert explanation.backend == "eager"
    assert words in str(explanation)
    with aim_fast.use_backend("triton"), pytest.raises(ValueError, match=f"cannot take this call: .*{words}"):
        dispatch.select(call)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("w", [torch.bfloat16, torch.float32], ids=str)
def test_the_widest_hidden_that_it_takes(h100: None, dtype: torch.dtype, w: torch.dtype) -> None:
    with aim_fast.use_backend("triton"):
        assert dispatch.select(call_of(H=512, dtype=dtype, w=w)).backend == "triton"


def test_old_gpu(h100: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_device, "gpu", lambda index: tiling.Gpu("Tesla V100", (7, 0), 80))
    triton_device.has_tiles.cache_clear()
    assert "needs compute capability 8, 9, 10 or 12" in str(dispatch.select(call_of()))
    triton_device.has_tiles.cache_clear()


def no_version(name: str) -> str:
    raise importlib.metadata.PackageNotFoundError(name)


@pytest.mark.parametrize(
    ("version", "cuda", "reason"),
    [
        (None, "13.0", r"Triton is not installed; pip install triton"),
        (lambda name: "3.1.0", "13.0", r"Triton is 3\.1\.0; pip install 'triton>=3\.2'"),
        (lambda name: "3.6.0", None, r"built without CUDA, .*; install a CUDA build"),
        (lambda name: "3.10.1+git", "13.0", ""),
        (no_version, "13.0", ""),
    ],
    ids=["none", "old", "torch_without_cuda", "new", "under_another_name"],
)
def test_why_it_is_not_there(
    monkeypatch: pytest.MonkeyPatch, version: Callable[[str], str] | None, cuda: str | None, reason: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if version is None else object())
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    found = available.without_triton()
    assert re.search(reason, found) if reason else found == ""


def test_tf32_only_when_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.empty(1)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for allowed, load in ((True, "tf32"), (False, "ieee")):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            assert triton_device.load_class(torch.float32, x) == load
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert triton_device.load_class(torch.bfloat16, x.bfloat16(), None) == "half"
    assert triton_device.load_class(torch.bfloat16, x.bfloat16(), x) == "amp"
    assert triton_device.load_class(torch.bfloat16, x.bfloat16(), x.half()) == "amp"


def test_import_leaves_triton_alone() -> None:
    code = (
        "import sys, torch; before = 'triton' in sys.modules; import aim_fast; print(before, 'triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == done.stdout.split()[0]


def check_choice_in_the_interpreter() -> None:
    tensors: dict[str, Any] = make_inputs((7, 24), 8)
    assert aim_fast.explain(**tensors).backend == "triton"  # AIM_FAST_BACKEND of the process
    with aim_fast.use_backend("auto"):
        explanation = aim_fast.explain(**tensors)
        assert explanation.backend == "eager"
        assert "interpreter has taken its place" in str(explanation)
        assert "CUDA tensors only" in str(explanation)
    with aim_fast.use_backend("triton"), pytest.raises(ValueError, match="float32, bfloat16 and float16 only"):
        aim_fast.adapter(**{name: t.double() for name, t in tensors.items()})


def test_choice_in_the_interpreter(interpreted: Callable[..., Any]) -> None:
    interpreted(check_choice_in_the_interpreter)


def check_layouts(x: str, residual: str | None) -> None:
    """The real kernels lay their results out as the fake ones say."""
    arguments = forward_arguments(torch.bfloat16, x_as=LAYOUTS[x], residual_as=LAYOUTS[residual] if residual else None)
    op = torch.ops.aim_fast.adapter_forward.default
    for of_dtypes in (arguments, (arguments[0].float(), *arguments[1:])):
        assert describe(op(*of_dtypes)) == fake(op, of_dtypes)
    op = torch.ops.aim_fast.adapter_backward.default
    arguments = backward_arguments(torch.bfloat16, dy_as=LAYOUTS[x])
    results: tuple[Tensor, ...] = op(*arguments)
    assert describe(results) == fake(op, arguments)


@pytest.mark.parametrize(
    ("x", "residual"), [("contiguous", None), ("permuted", None), ("gapped", "permuted"), ("expanded", "gapped")]
)
def test_layout_of_the_results(interpreted: Callable[..., Any], x: str, residual: str | None) -> None:
    interpreted(check_layouts, x, residual)


def check_missing_tensors() -> None:
    dy, _, z, *rest = backward_arguments(torch.float32)
    op = torch.ops.aim_fast.adapter_backward.default
    for kept, words in (((None, None), "neither x nor z was kept"), ((None, z), "x was not kept; dw1 needs it")):
        with pytest.raises(ValueError, match=words):
            op(dy, *kept, *rest)
    assert op(dy, None, None, *rest[:-1], 0b010000)[4].shape == (24,)  # db2 alone does without


def test_backward_without_what_it_needs(interpreted: Callable[..., Any]) -> None:
    interpreted(check_missing_tensors)
