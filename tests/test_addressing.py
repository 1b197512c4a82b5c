"""Large tensors: offsets that do not fit 32 bits, in every tensor that has rows, and results of many pages."""

from __future__ import annotations

import mmap
import os

import pytest
import torch
from torch import Tensor

import aim_fast
from judge import DEVICE, all_placed, evaluate, judge, make_inputs
from numeric_cases import turned

pytestmark = pytest.mark.usefixtures("fused")

FP32, BF16 = torch.float32, torch.bfloat16
MAP_NORESERVE = 0x4000  # of Linux
FAR = 2**31 + 11  # elements from one row to the next: even two rows are out of reach of 32 bits


def free_memory() -> int:
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def reserved(count: int, dtype: torch.dtype) -> Tensor:
    """count elements of address space; a page takes memory once it is touched. On a GPU memory itself."""
    if DEVICE != "cpu":
        if count * dtype.itemsize > free_memory():
            pytest.skip(f"needs {count * dtype.itemsize / 2**30:.0f} GiB")
        return torch.empty(count, dtype=dtype, device=DEVICE)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    return torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize, flags=flags), dtype=dtype)


def far_apart(t: Tensor) -> Tensor:
    """t's rows at the same distance from each other, the last one at least FAR elements from the first."""
    rows, width = t.shape
    stride = FAR if rows == 3 else FAR // (rows - 1) + 1
    out = reserved((rows - 1) * stride + width, t.dtype).as_strided((rows, width), (stride, 1))
    return out.copy_(t)


@pytest.mark.parametrize("name", ["x", "residual", "dy"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("rows", [3, 40])
def test_rows_far_apart(name: str, dtype: torch.dtype, rows: int) -> None:
    near = make_inputs((rows, 40), 8, dtype)
    near["residual"], near["dy"] = (
        torch.randn(2, rows, 40, generator=torch.Generator().manual_seed(1)).to(dtype).unbind()
    )
    near = all_placed(near)
    dy = near.pop("dy")
    expected = evaluate(aim_fast.adapter, near, dy, skip=True)
    far = near | {"dy": dy}
    far[name] = far_apart(far[name])
    got = evaluate(aim_fast.adapter, far, far.pop("dy"), skip=True)
    for key, value in expected.items():
        assert torch.equal(got[key], value), key


@pytest.mark.parametrize("rows", [3, 20])
def test_two_leading_dims_far_apart(rows: int) -> None:
    near = all_placed(make_inputs((2, rows, 40), 8))
    x = reserved(FAR + rows * 64, FP32).as_strided((2, rows, 40), (FAR, 64, 1)).copy_(near["x"])
    expected, got = (evaluate(aim_fast.adapter, t, torch.ones(2, rows, 40)) for t in (near, near | {"x": x}))
    for key, value in expected.items():
        assert torch.equal(got[key], value), key


@pytest.mark.skipif(free_memory() < 6 * 2**30, reason="needs 6 GiB: y has 2^31 bf16 elements")
def test_y_of_more_than_2_31_elements() -> None:
    """Written to its last element; x repeats one block of rows, so that every block of y is the same."""
    rows, width, blocks = 32, 2**16, 1025  # 2^31 elements and one block more
    tensors = all_placed(make_inputs((rows, width), 1, BF16))
    block = judge(tensors, None)["y"]
    y = aim_fast.adapter(**tensors | {"x": tensors["x"].expand(blocks, rows, width)})
    assert y.numel() > 2**31
    for i in (0, 1, 511, 512, 1023, 1024):
        assert torch.equal(y[i], block), i


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2)], ids=["rows", "transposed"])
def test_results_of_many_pages(order: tuple[int, int, int]) -> None:
    """y, z and dx on pages that are fresh from the system, mapped block by block: as in calls of fewer rows."""
    whole = make_inputs((16, 4096, 64), 48, FP32)  # results of 16 MiB, z of 12
    whole["x"] = turned(*order)(whole["x"])
    tensors = all_placed(whole)
    dy = tensors["x"].roll(1)
    got = evaluate(aim_fast.adapter, tensors, dy, skip=True)
    for i in (0, 7, 15):
        part = evaluate(aim_fast.adapter, tensors | {"x": tensors["x"][i]}, dy[i], skip=True)
        for name in ("y", "dx"):
            assert torch.equal(got[name][i], part[name]), (name, i)
