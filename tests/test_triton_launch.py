"""Repeated launches of the Triton kernels: they are those that Triton's own `run` would make, on a stand-in for a GPU.

Nothing is compiled: in the place of a compiled kernel stands what `run` knows it by, its key of all specialisations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from aim_fast import triton_backward, triton_forward, triton_launch
from aim_fast.triton_device import kernels
from aim_fast.triton_launch import Launch
from judge import make_inputs

pytest.importorskip("triton", reason="needs Triton")
if triton_launch._triton() is None:
    pytest.skip("this Triton makes all launches itself", allow_module_level=True)

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
_CACHES = (triton_launch.by_rows, triton_backward._dw, triton_backward._total)


class Made(NamedTuple):
    """What Triton's launcher got: the grid and the stream, the kernel by its key, and the arguments.

    A tensor is its address, as the launcher takes it; metadata and hooks are left out.
    """

    place: tuple[object, ...]
    kernel: str
    arguments: tuple[object, ...]


class Gpu:
    """An active driver of Triton, without a device. made: the launches; runs: how many of them Triton's `run` made."""

    stream = 7
    utils = SimpleNamespace(unload_module=lambda module: None)

    def __init__(self) -> None:
        self.made: list[Made] = []
        self.runs = 0

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return self.stream

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def launch(self, x: int, y: int, z: int, stream: int, function: Any, packed: Any, *rest: Any) -> None:
        assert packed == ("packed", function)
        arguments = tuple(a.data_ptr() if isinstance(a, Tensor) else a for a in rest[3:])
        self.made.append(Made((x, y, z, stream), function, arguments))

    def watch(self, call: Callable[[], object]) -> list[Made]:
        """The launches of a call."""
        self.made, self.runs = [], 0
        call()
        return self.made


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """The device in the place of Triton's, with caches that are empty before and after."""
    from triton.compiler import CompiledKernel
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    gpu, run = Gpu(), JITFunction.run

    def compiled(self: Any, key: str, signature: Any, device: int, *rest: Any, **options: Any) -> Any:
        kernel: Any = object.__new__(CompiledKernel)
        name = f"{self.fn.__name__} {key}"
        vars(kernel).update(dict.fromkeys(("src", "hash", "metadata_group", "_module_pid")), module="loaded")
        vars(kernel).update(name=name, function=name, packed_metadata=("packed", name))
        kernel._run = gpu.launch
        return self.device_caches[device][0].setdefault(key, kernel)

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        gpu.runs += 1
        return run(self, *arguments, **options)

    def clear() -> None:
        for cache in _CACHES:
            cache.cache_clear()
        for kernel in kernels()[:4]:
            kernel.device_caches.clear()

    monkeypatch.setattr(driver, "_active", gpu)
    monkeypatch.setattr(JITFunction, "_do_compile", compiled)
    monkeypatch.setattr(JITFunction, "run", counted)
    clear()
    yield gpu
    clear()


def shifted(t: Tensor) -> Tensor:
    """t at an address that is a multiple of 8 and not of 16."""
    start = 8 // t.itemsize
    moved = torch.empty(t.numel() + start, dtype=t.dtype)[start:].view(t.shape)
    assert moved.data_ptr() % 16 == 8
    return moved.copy_(t)


def tensors_of(dtype: torch.dtype = BF16, M: int = 48, D: int = 32, H: int = 16, **others: Any) -> dict[str, Any]:
    """The tensors of a call, `others` in their places."""
    return make_inputs((M, D), H, dtype) | {"scale": None, "row_scale": None, "residual": None} | others


def changed(name: str, change: Callable[[Tensor], Tensor] | None) -> dict[str, Any]:
    """The tensors with one of them changed, or without it."""
    tensors = tensors_of()
    return tensors | {name: change(tensors[name]) if change else None}


@dataclass(frozen=True)
class Call:
    """A forward and the backward of it."""

    tensors: dict[str, Any]
    activation: str = "gelu"
    skip: bool = True
    alpha: float = 1.0
    dtype: torch.dtype = BF16
    needs: int = 31

    def __call__(self) -> None:
        x, w1, b1, w2, b2 = (self.tensors[name] for name in ("x", "w1", "b1", "w2", "b2"))
        around = [self.tensors[name] for name in ("scale", "row_scale", "residual")]
        call = (self.activation, self.skip, self.alpha, self.dtype)
        y, z, _ = triton_forward.forward(x, w1, b1, w2, b2, *around, *call, True, True)
        triton_backward.backward(y, x, z, w1, b1, w2, b2, *around[:2], *call, x.dtype, self.needs)


def rows(*strides: int) -> Tensor:
    """x [48, 32], as [4, 3, 4, 32] with these strides of the leading dimensions."""
    return torch.zeros(16 * max(strides), dtype=BF16).as_strided((4, 3, 4, 32), (*strides, 1))


CALLS = {
    "plain": Call(tensors_of()),
    **{f"{name}_shifted": Call(changed(name, shifted)) for name in ("x", "w1", "b1", "w2", "b2")},
    **{f"without_{name}": Call(changed(name, None)) for name in ("b1", "b2")},
    "residual": Call(tensors_of(residual=torch.zeros(48, 32, dtype=BF16))),
    "residual_shifted": Call(tensors_of(residual=shifted(torch.zeros(48, 32, dtype=BF16)))),
    "residual_fp32": Call(tensors_of(residual=torch.zeros(48, 32))),
    "scale_one": Call(tensors_of(scale=torch.ones(1, dtype=BF16)), needs=63),
    "scale_wide": Call(tensors_of(scale=torch.ones(32, dtype=BF16)), needs=63),
    "scale_wide_shifted": Call(tensors_of(scale=shifted(torch.ones(32, dtype=BF16))), needs=63),
    "scale_frozen": Call(tensors_of(scale=torch.ones(32, dtype=BF16))),
    "row_scale": Call(tensors_of(row_scale=torch.ones(48))),
    "row_scale_of_one": Call(tensors_of(row_scale=torch.ones(1))),
    "relu": Call(tensors_of(), activation="relu"),
    "no_skip": Call(tensors_of(), skip=False),
    **{f"alpha_{alpha}": Call(tensors_of(), alpha=alpha) for alpha in (0.5, 2.0)},
    **{f"rows_{M}": Call(tensors_of(M=M)) for M in (1, 16, 17, 64, 96, 700)},
    **{f"width_{D}": Call(tensors_of(D=D)) for D in (1, 16, 17, 64)},
    **{f"hidden_{H}": Call(tensors_of(H=H)) for H in (1, 17, 40)},
    "fp16": Call(tensors_of(FP16), dtype=FP16),
    "fp32": Call(tensors_of(FP32), dtype=FP32),
    "amp": Call(tensors_of(FP32)),
    "amp_weights": Call(tensors_of(FP32, x=torch.zeros(48, 32, dtype=BF16))),
    **{f"needs_{needs}": Call(tensors_of(), needs=needs) for needs in (1, 2, 8)},
    **{f"padded_{D}": Call(tensors_of(x=torch.zeros(48, D, dtype=BF16)[:, :32])) for D in (33, 48)},
    **{f"strides_{a}_{b}_{c}": Call(tensors_of(x=rows(a, b, c))) for a, b, c in ((1, 33, 99), (32, 128, 512))},
    "expanded": Call(tensors_of(x=torch.zeros(1, 32, dtype=BF16).expand(48, 32))),
}


def described(made: list[Made], call: Call) -> list[Made]:
    """Launches with the addresses of the call's own tensors by name, those of results and workspaces left out."""
    names = {t.data_ptr(): name for name, t in call.tensors.items() if t is not None}

    def named(launch: Made) -> Made:
        kernel = next(kernel for kernel in kernels()[:4] if launch.kernel.startswith(f"{kernel.fn.__name__} "))
        pointers = sum(name.endswith("_ptr") for name in kernel.arg_names)
        own = [names.get(p, p is not None) for p in launch.arguments[:pointers]]
        return launch._replace(arguments=(*own, *launch.arguments[pointers:]))

    return [named(launch) for launch in made]


def test_they_are_those_that_run_makes(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernel, grid, stream and arguments, of calls that meet the kernels of all the others, in two orders."""
    with monkeypatch.context() as patch:
        patch.setattr(triton_launch, "_triton", lambda: None)
        expected = {name: described(gpu.watch(call), call) for name, call in CALLS.items()}
        assert {len(made) for made in expected.values()} == {2, 4}
    for turn in (CALLS, dict(reversed(CALLS.items())), CALLS):
        for name, call in turn.items():
            assert described(gpu.watch(call), call) == expected[name], name
    assert gpu.runs == 0


def test_how_often_run_is_asked(gpu: Gpu) -> None:
    """Once for what it has not seen: a call with other numbers, constants, dtypes or alignment, but no other alpha."""
    launches = {name: len(gpu.watch(CALLS[name])) - gpu.runs for name in ("plain", "alpha_2.0", "x_shifted", "relu")}
    # Of x_shifted the sum, of relu K2 and the sum are those of the first call.
    assert launches == {"plain": 0, "alpha_2.0": 4, "x_shifted": 2, "relu": 2}


NUMBERS = (1, 16, 17, 0, -16, 2**31 - 1, 2**31, 2**31 + 16, 2**40, 2**63)


@pytest.mark.parametrize("M", NUMBERS)
def test_every_argument(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, M: int) -> None:
    """All of the launcher's arguments as they are, for numbers of every kind that Triton knows."""
    constants = {p.name: 16 for p in kernels().dw.params if p.is_constexpr} | {"num_warps": 8}
    a, b = (torch.zeros(8, dtype=BF16) for _ in range(2))
    pairs = ((a, None), (None, b), (shifted(a), b), (a, b.float()), (a, shifted(b)), (a, b))
    for stride in NUMBERS:
        launch = Launch(kernels().dw, -1, (3, M % 5), (M, M, stride, M, stride, 16, 1, stride, M, 1), constants)
        calls = [functools.partial(launch, (*pair, None, a, b, None)) for pair in pairs]
        with monkeypatch.context() as patch:
            patch.setattr(triton_launch, "_triton", lambda: None)
            expected = [gpu.watch(call) for call in calls]
        for runs in (1, 0):
            for call, made in zip(calls, expected, strict=True):
                assert gpu.watch(call) == made
                assert gpu.runs == runs


def test_the_stream_is_the_current_one(gpu: Gpu) -> None:
    for gpu.stream in (7, 7, 8):
        assert {launch.place[-1] for launch in gpu.watch(CALLS["plain"])} == {gpu.stream}
    assert gpu.runs == 0


def test_a_tensor_elsewhere_comes_by_run(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses what the GPU cannot reach."""
    gpu.watch(CALLS["plain"])
    real = Tensor.get_device
    elsewhere = CALLS["plain"].tensors["b1"]
    monkeypatch.setattr(Tensor, "get_device", lambda self: 1 if self is elsewhere else real(self))
    gpu.watch(CALLS["plain"])
    assert gpu.runs == 1


def _hook(*_arguments: object, **_options: object) -> None:
    pass


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("runtime", "launch_enter_hook", _hook),
        ("runtime", "launch_exit_hook", _hook),
        ("runtime", "launch_exit_hook", SimpleNamespace(calls=[_hook])),
        ("runtime", "debug", True),
        ("runtime", "add_stages_inspection_hook", lambda: ("key", "hash")),
        ("compilation", "instrumentation_mode", "consan"),
    ],
)
def test_run_makes_what_is_watched(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, group: str, name: str, value: object
) -> None:
    """And what it made then is not taken for what it makes otherwise."""
    from triton import knobs

    with monkeypatch.context() as patch:
        patch.setattr(getattr(knobs, group), name, value)
        for _ in range(2):
            gpu.watch(CALLS["plain"])
            assert gpu.runs == 4
    gpu.watch(CALLS["plain"])
    assert gpu.runs == 4
    gpu.watch(CALLS["plain"])
    assert gpu.runs == 0


def test_run_calls_its_own_hooks(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        gpu.watch(CALLS["plain"])
    monkeypatch.setattr(kernels().dw, "pre_run_hooks", [_hook])
    gpu.watch(CALLS["plain"])
    assert gpu.runs == 1


@pytest.mark.parametrize("version", ["3.2.0", "3.5.1", "3.10.0", "4.0.0+git1234"])
def test_another_triton_makes_its_launches(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    import triton

    monkeypatch.setattr(triton, "__version__", version)
    assert triton_launch._triton.__wrapped__() is None
