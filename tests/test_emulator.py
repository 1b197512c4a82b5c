"""The emulator that runs the CUDA kernels on the CPU (tests/emulator): its layouts are exact, and it tells each misuse.

The probes are small kernels of their own, in tests/emulator/probe.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import emulation

PROBES = Path(__file__).parent / "emulator" / "probe"
EAGER, LAZY, RANDOM = range(3)
BF16, FP16 = torch.bfloat16, torch.float16

Probe = Callable[..., None]


@pytest.fixture(scope="module")
def library(emulator: None, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The probes, compiled."""
    target = tmp_path_factory.mktemp("probe") / "probe.so"
    sources = sorted(PROBES.glob("*.cu"))
    parts = [target.with_name(f"{source.stem}.o") for source in sources]
    # Both cores; what is timed here is nothing.
    running = [
        subprocess.Popen([*emulation.compiler(), "-O1", "-x", "c++", "-c", str(source), "-o", str(part)])
        for source, part in zip(sources, parts, strict=True)
    ]
    assert [process.wait() for process in running] == [0] * len(running)
    subprocess.run([*emulation.compiler()[:1], "-shared", *map(str, parts), "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


class FaultError(Exception):
    """What the emulator tells of a kernel."""


@pytest.fixture
def probe(library: ctypes.CDLL) -> Iterator[Probe]:
    """Calls a probe by name; tensors go as pointers."""

    def call(name: str, *arguments: Any) -> None:
        function = getattr(library, f"aim_probe_{name}")
        function.restype = ctypes.c_char_p
        told = function(*(ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in arguments))
        if told is not None:
            raise FaultError(told.decode())

    yield call
    call("order", EAGER, 0)


def integers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


# name: whether a is MN-major, whether b is, whether a comes from registers.
OPERANDS = {
    "k_k": (False, False, False),
    "k_mn": (False, True, False),
    "mn_k": (True, False, False),
    "mn_mn": (True, True, False),
    "registers_k": (False, False, True),
    "registers_mn": (False, True, True),
}


@pytest.mark.parametrize("width", [32, 64, 96, 128, 160, 192, 256])
@pytest.mark.parametrize("operands", OPERANDS)
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("order", [EAGER, LAZY, RANDOM])
def test_wgmma_is_exact(probe: Probe, order: int, dtype: torch.dtype, operands: str, width: int) -> None:
    a_turned, b_turned, registers = OPERANDS[operands]
    a, b, d = integers(64, 64, dtype=dtype), integers(64, width, dtype=dtype), integers(64, width)
    expected = d + a.float() @ b.float()
    in_memory = (a.t() if a_turned else a).contiguous(), (b if b_turned else b.t()).contiguous()
    probe("order", order, width)
    probe("wgmma", dtype == BF16, width, a_turned, b_turned, registers, *in_memory, d)
    assert torch.equal(d, expected)


@pytest.mark.parametrize("transposed", [False, True], ids=["ldmatrix", "trans"])
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_mma_is_exact(probe: Probe, dtype: torch.dtype, transposed: bool) -> None:
    a, b, d = integers(16, 16, dtype=dtype), integers(16, 8, dtype=dtype), integers(16, 8)
    expected = d + a.float() @ b.float()
    probe("mma", dtype == BF16, transposed, a, (b if transposed else b.t()).contiguous(), d)
    assert torch.equal(d, expected)


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "trans"])
def test_matrices_through_registers(probe: Probe, transposed: bool) -> None:
    matrices = torch.arange(256, dtype=torch.int16).view(4, 8, 8)
    back = torch.zeros_like(matrices)
    probe("matrix", transposed, matrices, back)
    assert torch.equal(back, matrices.mT if transposed else matrices)


def swizzled(tile: Tensor, chunks: int) -> Tensor:
    """The rows of a tile as a swizzle over so many chunks of 16 bytes leaves them in memory."""
    rows, columns = tile.shape
    address = torch.arange(rows * columns // 8)
    moved = address ^ (address // 8 % 8 // (8 // chunks) if chunks < 8 else address // 8 % 8)
    out = torch.empty_like(tile).view(-1, 8)
    out[moved] = tile.reshape(-1, 8)
    return out.view(rows, columns)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (64, 8), (-5, -3), (40, 12), (88, 0), (-64, 19)])
@pytest.mark.parametrize("order", [EAGER, LAZY, RANDOM])
def test_boxes_and_multicast(probe: Probe, order: int, x: int, y: int) -> None:
    """A box in both CTAs of a cluster, each half loaded by one of them; zeros beyond the matrix; and stored again."""
    rows, columns = 20, 88
    matrix = torch.arange(1, rows * columns + 1, dtype=torch.int16).view(rows, columns)
    stored, out = torch.full_like(matrix, -1), torch.zeros(2, 16, 64, dtype=torch.int16)
    probe("order", order, 1)
    probe("tma", matrix, stored, rows, columns, x, y, out)
    wide = torch.zeros(rows + 64, columns + 256, dtype=torch.int16)
    wide[32 : 32 + rows, 128 : 128 + columns] = matrix
    tile = wide[32 + y : 48 + y, 128 + x : 192 + x]
    assert torch.equal(out, swizzled(tile, 8).expand(2, -1, -1))
    inside = slice(max(y, 0), min(y + 16, rows)), slice(max(x, 0), min(x + 64, columns))
    expected = torch.full_like(matrix, -1)
    expected[inside] = matrix[inside]
    assert torch.equal(stored, expected)


# The mode: how many chunks of 16 bytes a row is wide, and which bits of the address of a chunk move.
SWIZZLES = {0: (8, 0), 1: (8, 7), 2: (4, 3), 3: (2, 1)}


@pytest.mark.parametrize("mode", SWIZZLES)
def test_swizzles(probe: Probe, mode: int) -> None:
    chunks, mask = SWIZZLES[mode]
    matrix = torch.arange(8 * chunks * 8, dtype=torch.int16).view(8, chunks * 8)
    out = torch.zeros_like(matrix)
    probe("swizzle", mode, chunks * 8, matrix, out)
    address = torch.arange(8 * chunks)
    expected = torch.empty_like(matrix).view(-1, 8)
    expected[address ^ (address // 8 & mask)] = matrix.view(-1, 8)
    assert torch.equal(out.view(-1, 8), expected)


def test_static_shared_memory_of_several_ctas(probe: Probe) -> None:
    out = torch.zeros(4, 64, dtype=torch.int32)
    probe("static_shared", out)
    assert torch.equal(out, (torch.arange(4)[:, None] * 100 + torch.arange(63, -1, -1)).int())


def test_shuffles(probe: Probe) -> None:
    out, lanes = torch.zeros(3, 32, dtype=torch.int32), torch.arange(32)
    probe("shuffles", out)
    down = torch.where(lanes + 4 < 32, lanes + 4, lanes)
    assert torch.equal(out, torch.stack([(lanes + 3) % 32, lanes ^ 5, down]).int())


@pytest.mark.parametrize("order", [EAGER, LAZY])
def test_what_is_touched_too_early(probe: Probe, order: int) -> None:
    """Accumulators and destinations are NaN while in flight, a store takes what its source holds when it is done."""
    seen = torch.full((4, 1), 5.0)
    probe("order", order, 0)
    probe("too_early", *seen)
    accumulator, copied, stored, fresh = seen.flatten().tolist()
    in_flight = (accumulator, copied) if order == LAZY else ()
    assert all(value != value for value in (fresh, *in_flight))
    assert stored == (2 if order == LAZY else 0)


ALWAYS, NOT_AT_ONCE = (EAGER, LAZY, RANDOM), (LAZY, RANDOM)
NO_FENCE = "thread 0 wrote without fence.proxy.async"
IN_FLIGHT = "a copy in flight will write"
# Each misuse: what is told, and in which orders of completion; RANDOM with one seed of eight at least.
MISUSES = {
    "store_without_proxy_fence": (f"TMA store reads shared memory that {NO_FENCE}", ALWAYS),
    "wgmma_without_proxy_fence": (f"wgmma reads shared memory that {NO_FENCE}", ALWAYS),
    "copy_read_before_wait": (f"ldmatrix reads shared memory that {IN_FLIGHT}", NOT_AT_ONCE),
    "copy_misaligned": ("cp.async: an address is not aligned to 16 bytes", ALWAYS),
    "copy_not_committed": ("ends with cp.async that it has not committed or not waited for", ALWAYS),
    "load_misaligned": ("TMA load: the address in shared memory is not aligned", ALWAYS),
    "load_over_a_load": (f"TMA load writes shared memory that {IN_FLIGHT}", NOT_AT_ONCE),
    "load_read_before_wait": (f"ldmatrix reads shared memory that {IN_FLIGHT}", NOT_AT_ONCE),
    "load_past_the_end": ("TMA load past the end of shared memory", ALWAYS),
    "load_of_fewer_bytes": (
        r"deadlock.*threads 0-31 in mbarrier.try_wait at offset 8000 .*, 0 arrivals and 16 bytes",
        ALWAYS,
    ),
    "load_of_more_bytes": (r"deadlock.* 0 arrivals and -16 bytes missing", ALWAYS),
    "load_in_flight_at_the_end": ("ends with TMA loads in flight", NOT_AT_ONCE),
    "store_source_overwritten": ("stmatrix writes shared memory that a store in flight still reads", NOT_AT_ONCE),
    "store_not_waited_for": ("ends with TMA stores that it has not committed or not waited for", ALWAYS),
    "barrier_not_initialised": ("no mbarrier was initialised here", ALWAYS),
    "barrier_init_not_fenced": ("no fence.mbarrier_init", ALWAYS),
    "barrier_overwritten": ("the mbarrier has been overwritten", ALWAYS),
    "barrier_too_many_arrivals": ("more arrivals than its count", ALWAYS),
    "barrier_phase_gone_by": ("the phase went by, and the next one too", ALWAYS),
    "barrier_wrong_parity": (r"deadlock.*for parity 1 \(1 phases done, 1 arrivals", ALWAYS),
    "named_barrier_of_two_counts": ("one barrier with counts (64 and 32|32 and 64)", ALWAYS),
    "named_barrier_twice": ("a thread comes twice in one phase", ALWAYS),
    "named_barrier_of_no_whole_warps": ("the count is no multiple of a warp", ALWAYS),
    "named_barrier_that_nobody_else_reaches": (r"deadlock.*threads 0-31 in bar.sync\]$", ALWAYS),
    "warp_diverges": ("a warp diverges: (ldmatrix in one lane, __syncwarp|__syncwarp in one lane, ldmatrix)", ALWAYS),
    "rows_misaligned": ("ldmatrix: a row is not aligned", ALWAYS),
    "arrival_at_an_ended_cta": ("mbarrier.arrive at the shared memory of a CTA that has ended", (EAGER, LAZY)),
    "multicast_into_an_ended_cta": ("(the kernel ends with TMA loads|a CTA that has ended)", NOT_AT_ONCE),
    "multicast_out_of_the_cluster": ("the mask names a CTA that the cluster lacks", ALWAYS),
    "wgmma_not_fenced": ("no wgmma.fence since its registers were last touched", ALWAYS),
    "wgmma_operand_in_flight": (f"wgmma reads shared memory that {IN_FLIGHT}", NOT_AT_ONCE),
    "wgmma_operands_differ": (r"the threads name different operands \[block 0,0 thread", ALWAYS),
    "wgmma_past_the_end": ("wgmma past the end of shared memory", ALWAYS),
    "wgmma_of_three_warps": ("not a whole warpgroup", ALWAYS),
    "wgmma_in_flight_at_the_end": ("ends with wgmma in flight", ALWAYS),
    "wgmma_left_by_one_warp": ("a warpgroup diverges", ALWAYS),
    "write_past_the_end": ("wrote past the end of its shared memory", ALWAYS),
    "wild_pointer": ("an access to memory that is not there", ALWAYS),
    "stack_used_up": ("a stack used up", ALWAYS),
    "exception_in_a_kernel": ("thrown in the kernel", ALWAYS),
    "too_many_threads": ("a launch of 1056 threads", ALWAYS),
    "too_much_shared_memory": ("232449 bytes of shared memory", ALWAYS),
    "too_large_a_cluster": ("clusters of more than 8", ALWAYS),
    "grid_of_no_whole_clusters": ("no multiple of the cluster", ALWAYS),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_is_told(probe: Probe, name: str) -> None:
    """The wrong kernel is told in the orders that show it; the right one, run after it, passes in all of them."""
    text, orders = MISUSES[name]
    for order in (EAGER, LAZY, RANDOM):
        told = []
        for seed in range(8 if order == RANDOM else 1):
            probe("order", order, seed)
            try:
                probe("misuse", name.encode(), True)
            except FaultError as fault:
                told.append(str(fault))
            probe("misuse", name.encode(), False)
        assert all(re.search(text, fault) for fault in told), told
        assert told or order not in orders, f"order {order} tells nothing"


def test_every_misuse_has_its_text(library: ctypes.CDLL) -> None:
    library.aim_probe_misuses.restype = ctypes.c_char_p
    assert library.aim_probe_misuses().decode().split() == list(MISUSES)
