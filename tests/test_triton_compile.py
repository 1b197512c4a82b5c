"""Every row of the table of tiles compiled ahead of time for sm_80, sm_90 and sm_100: no GPU is needed for that.

Asserted: nothing spills, shared and tensor memory suffice, and the products run on the tensor cores. `pytest -s` prints
what each kernel takes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import aim_fast
from ahead import Compiled, compile_ahead, undefined_read
from aim_fast.kernels import tiling
from aim_fast.kernels.tiling import Tile

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# Bytes of shared memory that a program may have; 8.6, 8.9 and 12.0 have no more than that of family 80.
SHARED = {80: 99 << 10, 90: 227 << 10, 100: 227 << 10}
TENSOR_MEMORY = 512  # columns
# dtypes of what is loaded and of the products
DTYPES = {"half": (BF16, BF16), "amp": (FP32, BF16), "tf32": (FP32, FP32), "ieee": (FP32, FP32)}

ROWS = [
    (family, load, kernel, tile)
    for family, table in tiling.TILES.items()
    for load in tiling.LOADS
    for kernel in tiling.KERNELS
    for tile in dict.fromkeys((*table[load][kernel], *tiling.FEW[load][kernel]))
]


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """What did not change is not compiled again."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(Path(__file__).parent.parent / "build" / "triton"))


def arguments(load: str, kernel: str, tile: Tile, H: int, **changed: Any) -> tuple[Any, dict[str, Any]]:
    """A kernel and its arguments for a train step: skip, biases, every gradient; `changed` replaces some."""
    import triton.language as tl

    from aim_fast.kernels.adapter_bwd import adapter_bwd_dx
    from aim_fast.kernels.adapter_bwd_dw import adapter_bwd_dw
    from aim_fast.kernels.adapter_fwd import adapter_fwd

    function = {"fwd": adapter_fwd, "dx": adapter_bwd_dx, "dw": adapter_bwd_dw}[kernel]
    loaded, compute = DTYPES[load]
    pointers = dict.fromkeys(("x_ptr", "y_ptr", "dy_ptr", "dx_ptr", "w1_ptr", "w2_ptr", "b1_ptr", "b2_ptr"), loaded)
    pointers |= dict.fromkeys(("z_ptr", "dz_ptr", "h_ptr"), compute)
    pointers |= dict.fromkeys(("ws_db1_ptr", "ws_db2_ptr", "ws_dw1_ptr", "ws_dw2_ptr"), FP32)
    if kernel == "dw" and load == "amp":
        pointers["x_ptr"] = compute  # kept as it was multiplied
    values: dict[str, Any] = pointers | {
        "alpha": 1.0,
        "D": 4 * H,
        "H": H,
        **{f"P{i}": part for i, part in enumerate(tiling.parts(H, tile.part))},
        "BLOCK_M": tile.block_m,
        "BLOCK_K": tile.block_k,
        "BLOCK_D": tile.block_d,
        "SPLIT": 1,
        "STAGES": tile.stages,
        "DIMS": 1,
        "ACT": "gelu",
        "SKIP": True,
        "WIDE_SCALE": False,
        "COMPUTE": {BF16: tl.bfloat16, FP16: tl.float16, FP32: tl.float32}[compute],
        "PRECISION": "tf32" if load == "tf32" else "ieee",
    }
    absent = {"scale_ptr": None, "row_scale_ptr": None, "residual_ptr": None}
    values = dict.fromkeys(function.arg_names, 1) | absent | values | changed
    return function, {name: values[name] for name in function.arg_names}


def compiled(family: int, load: str, kernel: str, tile: Tile, H: int, **changed: Any) -> Compiled:
    return compile_ahead(*arguments(load, kernel, tile, H, **changed), family, tile.warps, tile.stages)


def assert_clean(result: Compiled, family: int, load: str, tile: Tile) -> None:
    print(f"sm_{family} {load} {tile}: {result}")
    assert result.local == 0, f"spills: {result}"
    assert not result.undefined, f"reads what nothing has written: {result.undefined}"
    assert result.shared <= SHARED[family], f"shared memory: {result}"
    assert result.tmem <= TENSOR_MEMORY, f"tensor memory: {result}"
    # ptxas replaces a kernel that it cannot build by one that traps.
    assert result.registers > 16, f"no kernel: {result}"
    if load != "ieee":
        assert result.products > 0 or (tile.block_m < 64 and result.small_products > 0), f"no tensor cores: {result}"


@pytest.mark.parametrize(
    ("family", "load", "kernel", "tile"),
    ROWS,
    ids=[f"sm_{family}-{load}-{kernel}-{tile.max_h}-{tile.block_m}" for family, load, kernel, tile in ROWS],
)
def test_row_of_the_table(family: int, load: str, kernel: str, tile: Tile) -> None:
    """At the largest H that the row serves."""
    assert_clean(compiled(family, load, kernel, tile, tile.max_h), family, load, tile)


# Beyond H = 256 little is left of shared and of tensor memory, and a call that needs more than there is does not start:
# with all terms; with x in the other 16-bit type, or narrower than the products, which sm_100 widens in tensor memory.
ALL_TERMS: dict[str, Any] = {
    "scale_ptr": FP32,
    "WIDE_SCALE": True,
    "row_scale_ptr": FP32,
    "residual_ptr": FP32,
    "y_ptr": FP32,
    "SPLIT": 2,
}
CONVERTED = {
    "amp": {"x_ptr": FP16, "dy_ptr": FP16},
    "tf32": {"x_ptr": BF16, "dy_ptr": BF16},
}


@pytest.mark.parametrize(
    ("family", "load", "kernel", "tile"),
    [row for row in ROWS if row[3].max_h > 256 and row[2] != "dw"],
    ids=[
        f"sm_{family}-{load}-{kernel}-{tile.max_h}-{tile.block_m}-{tile.block_k}-{tile.block_d}"
        for family, load, kernel, tile in ROWS
        if tile.max_h > 256 and kernel != "dw"
    ],
)
def test_wide_rows_with_all_terms(family: int, load: str, kernel: str, tile: Tile) -> None:
    assert_clean(compiled(family, load, kernel, tile, tile.max_h, **ALL_TERMS), family, load, tile)


@pytest.mark.parametrize("kernel", tiling.KERNELS)
@pytest.mark.parametrize("load", CONVERTED)
def test_converted_operands_fit_in_tensor_memory(load: str, kernel: str) -> None:
    for tile in tiling.TILES[100][load][kernel]:
        if tile.max_h > 256:
            assert_clean(compiled(100, load, kernel, tile, tile.max_h, **CONVERTED[load]), 100, load, tile)


def gpu_of(family: int) -> tiling.Gpu:
    return tiling.Gpu("", {80: (8, 0), 90: (9, 0), 100: (10, 0)}[family], 132)


@pytest.mark.parametrize("activation", [name for name in aim_fast.ACTIVATIONS if name != "gelu"])
def test_other_activations(activation: str) -> None:
    """In the kernel that needs the most registers for them, with all terms, at a ragged H and D."""
    tile = tiling.tiles(gpu_of(90), "dx", "half", 196)[0]
    changed = {"ACT": activation, "scale_ptr": BF16, "WIDE_SCALE": True, "row_scale_ptr": FP32, "D": 760}
    assert_clean(compiled(90, "half", "dx", tile, 196, **changed), 90, "half", tile)


@pytest.mark.parametrize("family", [80, 90, 100])
@pytest.mark.parametrize("kernel", ["fwd", "dx"])
def test_all_terms_and_strided_rows(family: int, kernel: str) -> None:
    plan = tiling.plans(gpu_of(family), kernel, "half", 50432, 768, 192, dims=3)[0]
    changed: dict[str, Any] = {"scale_ptr": BF16, "WIDE_SCALE": True, "row_scale_ptr": FP32, "residual_ptr": FP32}
    changed |= {"y_ptr": FP32, "DIMS": 3, "SPLIT": 2}
    assert_clean(compiled(family, "half", kernel, plan.tile, 192, **changed), family, "half", plan.tile)


def test_a_spill_would_show() -> None:
    """A tile as large as none in the table."""
    result = compiled(90, "half", "dx", Tile(512, 128, 64, 64, 128, 4, 2), 512)
    assert result.local > 0
    with pytest.raises(AssertionError, match="spills"):
        assert_clean(result, 90, "half", Tile(512, 128, 64, 64, 128, 4, 2))


def test_the_sum_of_partial_results() -> None:
    import triton.language as tl

    from aim_fast import triton_backward
    from aim_fast.kernels.adapter_bwd_dw import adapter_bwd_sum

    blocks = {name: value for name, value in triton_backward._SUM.items() if name != "num_warps"}
    values: dict[str, Any] = dict.fromkeys(adapter_bwd_sum.arg_names, 1) | blocks
    values |= {name: FP32 for name in adapter_bwd_sum.arg_names if name.startswith(("ws", "d"))}
    values |= dict.fromkeys(("w2_ptr", "b2_ptr", "scale_ptr", "dw1_ptr", "db1_ptr", "dw2_ptr", "db2_ptr"), BF16)
    values |= {"alpha": 0.5, "D": 768, "H": 192, "WIDE_SCALE": True, "COMPUTE": tl.bfloat16}
    result = compile_ahead(adapter_bwd_sum, values, 90, triton_backward._SUM["num_warps"], 3)
    assert result.local == 0


# In 16 bits, rows of an odd H can be fetched by single elements alone: nothing is ahead, and some registers may spill.
@pytest.mark.parametrize("H", [17, 33, 97, 195])
@pytest.mark.parametrize("kernel", tiling.KERNELS)
@pytest.mark.parametrize("load", ["half", "amp"])
def test_odd_rows(load: str, kernel: str, H: int) -> None:
    tile = next(tile for tile in tiling.TILES[90][load][kernel] if tile.max_h >= H)
    assert not compiled(90, load, kernel, tile, H, D=H + 2).undefined


SASS = """
        /*0100*/                   S2UR UR36, SR_CgaCtaId ;
        /*0110*/                   ULEA UR36, UR36, UR4, 0x18 ;
        /*0120*/              @!P0 UIADD3.64 UR8, UR36, 0x80, URZ ;
.L_x_3:
        /*0130*/                   HGMMA.64x16x16.F32.BF16 R40, R24, gdesc[UR6].tnspB, R40, gsb0 ;
        /*0140*/                   HGMMA.64x16x16.F32.BF16 R40, gdesc[UR8].tnspA.tnspB, R40 ;
"""


def test_what_is_read_before_it_is_written() -> None:
    assert undefined_read(SASS) == "ULEA UR36, UR36, UR4, 0x18"
    written = SASS.replace("ULEA UR36, UR36, UR4, 0x18", "ULEA UR36, UR36, UR36, 0x18")
    # UR8 and UR9 are written; an operand in registers leaves the first half of its four unread, as UR6 and UR7.
    assert undefined_read(written) == "HGMMA.64x16x16.F32.BF16 R40, gdesc[UR8].tnspA.tnspB, R40"
    assert undefined_read(written.replace("gdesc[UR8].tnspA", "R24, gdesc[UR6]")) == ""
