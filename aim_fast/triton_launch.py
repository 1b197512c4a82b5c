"""Launches of the Triton kernels that cost the host little: one made before is repeated without Triton's `run`.

At every launch `run` binds some forty arguments, finds what each is specialised on, and looks the kernel up by a key of
all of it, as text. A `Launch` has most of that settled. What is left are the tensors, and of a tensor Triton looks at
the dtype and at whether its address is a multiple of 16. The first launch for each combination goes through `run`,
which compiles what it has to and returns the compiled kernel; the next ones hand that to its launcher, as `run` does.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aim_fast.kernels.tiling import Plan
from aim_fast.triton_device import INTERPRETED, constants, kernels
from aim_fast.triton_rows import Rows

# The versions of Triton whose `run` and launcher are as here: what they specialise on, and their arguments in order.
_FIRST, _LAST = (3, 6), (3, 9)


class _Triton(NamedTuple):
    """Of Triton, what a repeated launch reads."""

    knobs: Any
    driver: Any
    CompiledKernel: type


@functools.cache
def _triton() -> _Triton | None:
    """None where `run` makes all launches: in the interpreter, in another version of Triton, and on AMD GPUs."""
    import triton

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if INTERPRETED or torch.version.hip is not None or not _FIRST <= version <= _LAST:
        return None
    from triton import knobs
    from triton.compiler import CompiledKernel
    from triton.runtime import driver

    return _Triton(knobs, driver, CompiledKernel)


def _watched(kernel: Any, knobs: Any) -> bool:
    """Whether a hook sees the launches, or something changes what is compiled: `run` does what that needs."""
    runtime = knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    return bool(
        getattr(enter, "calls", enter)
        or getattr(leave, "calls", leave)
        or kernel.pre_run_hooks
        or runtime.debug
        or runtime.add_stages_inspection_hook
        or knobs.compilation.instrumentation_mode
    )


class Launch:
    """A kernel on the device `index`, with everything but the tensors and the floats that it is called with.

    numbers: the integers that stand between them. constants: the constexprs, and Triton's options. Triton specialises
    on both, so with others it is another Launch.
    """

    def __init__(
        self, kernel: Any, index: int, grid: tuple[int, ...], numbers: Sequence[int], constants: Mapping[str, Any]
    ) -> None:
        self.kernel, self.index, self.numbers, self.constants = kernel, index, numbers, constants
        self.grid = (*grid, 1, 1)[:3]
        # Triton's launcher wants them in their places, and skips them.
        self.skipped = [constants[name] for name in kernel.arg_names if name in constants]
        self.compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(self, tensors: Sequence[Tensor | None], *floats: float) -> None:
        """Launch on the current stream of the device, which is the current one."""
        kernel, triton = self.kernel, _triton()
        if triton is None or _watched(kernel, triton.knobs):
            kernel[self.grid](*tensors, *self.numbers, *floats, **self.constants)
            return
        pointers: list[int | None] = []
        facts: list[Any] = []  # in one loop and flat: this runs at every launch
        for t in tensors:
            if t is None:
                pointers.append(None)
                facts.append(None)
            else:
                pointer = t.data_ptr()
                pointers.append(pointer)
                # The device too: `run` refuses tensors in memory that no GPU reaches, so they have to come by it.
                facts += (t.dtype, pointer % 16 == 0, t.get_device())
        key = tuple(facts)
        compiled = self.compiled.get(key)
        if compiled is None:
            compiled = kernel[self.grid](*tensors, *self.numbers, *floats, **self.constants)
            # A hook can have Triton compile nothing.
            if isinstance(compiled, triton.CompiledKernel):
                self.compiled[key] = compiled
            return
        stream = triton.driver.active.get_current_stream(self.index)
        launch = (*self.grid, stream, compiled.function, compiled.packed_metadata)
        # No metadata and no hooks: nobody watches.
        compiled.run(*launch, None, None, None, *pointers, *self.numbers, *floats, *self.skipped)


@functools.lru_cache(maxsize=2048)
def by_rows(
    name: str,
    index: int,
    how: Plan,
    load: str,
    M: int,
    D: int,
    H: int,
    rows: Rows,
    activation: str,
    skip: bool,
    wide_scale: bool,
    dtype: torch.dtype,
) -> Launch:
    """The kernel "fwd" or "dx" for calls of this shape, to be called with its tensors and alpha."""
    tile = how.tile
    named = {"SPLIT": how.split, "DIMS": rows.dims, "ACT": activation, "SKIP": skip, "WIDE_SCALE": wide_scale}
    return Launch(
        getattr(kernels(), name),
        index,
        (-(-M // tile.block_m), how.split),
        (M, rows.n1, rows.n2, *itertools.chain(*rows.strides)),
        {**named, "BLOCK_K": tile.block_k, **constants(how, D, H, dtype, load)},
    )
