"""Bad input: an error that names the argument, what it got, what is needed and the remedy; nothing written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import aim_fast
from judge import Tensors, make_inputs

D, H = 24, 8


def good() -> Tensors:
    return make_inputs((3, 5, D), H)


ones = torch.ones
# What replaces good arguments, the exception, and what its text says: the argument, got, needed, and a remedy.
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "x_list": ({"x": [1.0]}, TypeError, "x is a list; expected a torch.Tensor"),
    "x_none": ({"x": None}, TypeError, "x is a NoneType"),
    "w1_none": ({"w1": None}, TypeError, "w1 is a NoneType"),
    "w2_none": ({"w2": None}, TypeError, "w2 is a NoneType"),
    "b1_number": ({"b1": 0.0}, TypeError, "b1 is a float; expected a torch.Tensor"),
    "row_scale_number": ({"row_scale": 1.25}, TypeError, "row_scale is a float"),
    "residual_bool": ({"residual": True}, TypeError, "residual is a bool"),
    "scale_text": ({"scale": "0.5"}, TypeError, r"scale is a str; expected a float, or a tensor"),
    "scale_none": ({"scale": None}, TypeError, "scale is a NoneType"),
    "scale_bool": ({"scale": True}, TypeError, "scale is a bool"),
    "scale_complex": ({"scale": 1j}, TypeError, "scale is a complex"),
    # dtypes
    "x_int": ({"x": ones(3, 5, D, dtype=torch.int64)}, TypeError, r"x is torch\.int64; expected float32.*x\.to\("),
    "x_bool": ({"x": ones(3, 5, D, dtype=torch.bool)}, TypeError, r"x is torch\.bool"),
    "x_complex": ({"x": ones(3, 5, D, dtype=torch.complex64)}, TypeError, r"x is torch\.complex64"),
    "x_fp8": ({"x": ones(3, 5, D).to(torch.float8_e4m3fn)}, TypeError, r"x is torch\.float8_e4m3fn"),
    "w1_int8": ({"w1": ones(H, D, dtype=torch.int8)}, TypeError, r"w1 is torch\.int8.*w1\.to\("),
    "b2_int": ({"b2": ones(D, dtype=torch.int32)}, TypeError, r"b2 is torch\.int32"),
    "residual_int": ({"residual": ones(3, 5, D, dtype=torch.int32)}, TypeError, r"residual is torch\.int32"),
    "row_scale_bool": ({"row_scale": ones(3, 1, dtype=torch.bool)}, TypeError, r"row_scale is torch\.bool"),
    "scale_int": ({"scale": ones(1, dtype=torch.int64)}, TypeError, r"scale is torch\.int64"),
    # layouts
    "x_sparse": ({"x": ones(5, D).to_sparse()}, TypeError, r"x has layout torch\.sparse_coo; .*x\.to_dense\(\)"),
    "w1_csr": ({"w1": ones(H, D).to_sparse_csr()}, TypeError, r"w1 has layout torch\.sparse_csr; .*w1\.to_dense\(\)"),
    "x_mkldnn": ({"x": ones(5, D).to_mkldnn()}, TypeError, r"x has layout torch\._mkldnn"),
    # devices
    "x_meta": ({"x": ones(3, 5, D, device="meta")}, ValueError, r"is on cpu but x is on meta; .*\.to\(x\.device\)"),
    "w1_meta": ({"w1": ones(H, D, device="meta")}, ValueError, "w1 is on meta but x is on cpu"),
    "b2_meta": ({"b2": ones(D, device="meta")}, ValueError, "b2 is on meta but x is on cpu"),
    "scale_meta": ({"scale": ones(1, device="meta")}, ValueError, "scale is on meta but x is on cpu"),
    # shapes
    "x_scalar": ({"x": ones(())}, ValueError, r"x has no dimensions; expected x of shape \[\.\.\., D\].*unsqueeze"),
    "x_no_width": ({"x": ones(5, 0)}, ValueError, r"x is \[5, 0\]; expected a last dimension D >= 1"),
    "x_other_width": ({"x": ones(5, 25)}, ValueError, r"w1 is \[8, 24\] but x has D = 25; .* \[H, 25\]"),
    "w1_other_width": ({"w1": ones(H, 25)}, ValueError, r"w1 is \[8, 25\] but x has D = 24"),
    "w1_turned": ({"w1": ones(D, H)}, ValueError, r"w1 is \[24, 8\] but x has D = 24; .*nn\.Linear\(D, H\)"),
    "w1_vector": ({"w1": ones(D)}, ValueError, r"w1 is \[24\] but x has D = 24"),
    "w1_cube": ({"w1": ones(1, H, D)}, ValueError, r"w1 is \[1, 8, 24\]"),
    "w1_no_hidden": ({"w1": ones(0, D), "b1": None, "w2": ones(D, 0)}, ValueError, r"w1 is \[0, 24\].*H >= 1"),
    "w2_turned": ({"w2": ones(H, D)}, ValueError, r"w2 is \[8, 24\]; .*\[D, H\] = \[24, 8\]; .*nn\.Linear\(H, D\)"),
    "w2_other_hidden": ({"w2": ones(D, 9)}, ValueError, r"w2 is \[24, 9\]; .* \[D, H\] = \[24, 8\]"),
    "w2_vector": ({"w2": ones(D)}, ValueError, r"w2 is \[24\]"),
    "b1_wide": ({"b1": ones(D)}, ValueError, r"b1 is \[24\]; .* \[H\] = \[8\]; pass None"),
    "b1_matrix": ({"b1": ones(1, H)}, ValueError, r"b1 is \[1, 8\]"),
    "b1_one": ({"b1": ones(1)}, ValueError, r"b1 is \[1\]"),
    "b2_short": ({"b2": ones(H)}, ValueError, r"b2 is \[8\]; expected b2 of shape \[D\] = \[24\]"),
    "b2_scalar": ({"b2": ones(())}, ValueError, r"b2 is \[\]"),
    "scale_short": ({"scale": ones(H)}, ValueError, r"scale is \[8\]; expected shape \[1\] or \[D\] = \[24\]"),
    "scale_matrix": ({"scale": ones(1, D)}, ValueError, r"scale is \[1, 24\]"),
    "residual_rows": ({"residual": ones(15, D)}, ValueError, r"residual is \[15, 24\]; .* \[3, 5, 24\]; expand"),
    "residual_row": ({"residual": ones(D)}, ValueError, r"residual is \[24\]"),
    "residual_broadcast": ({"residual": ones(1, 5, D)}, ValueError, r"residual is \[1, 5, 24\]"),
    "row_scale_other": ({"row_scale": ones(4, 1)}, ValueError, r"row_scale is \[4, 1\]; .*leading dimensions \[3, 5\]"),
    "row_scale_with_width": ({"row_scale": ones(3, 1, 1)}, ValueError, r"row_scale is \[3, 1, 1\]; .*drop its last"),
    "row_scale_of_vector": ({"x": ones(D), "row_scale": ones(1)}, ValueError, r"row_scale is \[1\]"),
    "row_scale_grad": ({"row_scale": ones(3, 1, requires_grad=True)}, ValueError, r"row_scale requires grad; .*detach"),
    # names
    "activation": ({"activation": "gelo"}, ValueError, "activation is 'gelo'; expected one of gelu, gelu_tanh"),
    "activation_none": ({"activation": None}, ValueError, "activation is None; expected one of"),
    "activation_module": ({"activation": torch.nn.GELU()}, ValueError, r"activation is GELU\(.*expected one of"),
    "activation_list": ({"activation": ["gelu"]}, ValueError, r"activation is \['gelu'\]"),
}


@pytest.mark.parametrize(("bad", "exception", "text"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_bad_input(backend: str, bad: dict[str, Any], exception: type[Exception], text: str) -> None:
    arguments = good() | bad
    before = {name: t.clone() for name, t in arguments.items() if isinstance(t, Tensor) and t.device.type == "cpu"}
    with aim_fast.use_backend(backend), pytest.raises(exception, match=f"^adapter: .*{text}") as caught:
        aim_fast.adapter(**arguments)
    assert type(caught.value) is exception
    for name, t in before.items():
        assert torch.equal(arguments[name].to_dense(), t.to_dense()), name


def test_good_input_passes() -> None:
    """The table above spoils something that works."""
    assert aim_fast.adapter(**good()).shape == (3, 5, D)
    for scale in (2, 0.5, ones(()), ones(1), ones(D)):
        aim_fast.adapter(**good(), scale=scale)
    for row_scale in (ones(()), ones(5), ones(1, 5), ones(3, 1), ones(3, 5)):
        aim_fast.adapter(**good(), row_scale=row_scale)


def test_unknown_keyword_and_positional_options() -> None:
    adapter: Any = aim_fast.adapter
    with pytest.raises(TypeError, match="dropout"):
        adapter(**good(), dropout=0.1)
    with pytest.raises(TypeError, match="positional"):
        adapter(*good().values(), "gelu")


def test_errors_come_before_the_graph(cpu_library: None) -> None:
    """A refused call leaves no graph behind and the next one works."""
    arguments = {name: t.requires_grad_() for name, t in good().items()}
    with pytest.raises(ValueError, match="w2"):
        aim_fast.adapter(**arguments | {"w2": ones(D, 9)})
    aim_fast.adapter(**arguments).sum().backward()
    assert all(t.grad is not None for t in arguments.values())


def test_meta_tensors_give_a_meta_tensor(cpu_library: None) -> None:
    """All of them on meta is no mistake: shapes are propagated without data, as nn.Linear does."""
    arguments = make_inputs((3, 5, D), H, torch.bfloat16, device="meta")
    y = aim_fast.adapter(**arguments, skip=True)
    assert (y.device.type, y.shape, y.dtype) == ("meta", (3, 5, D), torch.bfloat16)


def test_gradient_of_another_shape_or_dtype(fused: None) -> None:
    """The engine refuses what does not fit before the kernel sees it."""
    arguments = {name: t.requires_grad_() for name, t in good().items()}
    y = aim_fast.adapter(**arguments)
    with pytest.raises(RuntimeError):
        y.backward(ones(3, 5, D - 1))
    with pytest.raises(RuntimeError):
        y.backward(ones(3, 5))


# What the operators of torch.library do with arguments that never went through adapter(): raise, never crash.
def _forward(**changes: Any) -> Any:
    values: dict[str, Any] = {
        **good(),
        **dict.fromkeys(("scale", "row_scale", "residual")),
        "activation": "gelu",
        "skip": True,
        "alpha": 1.0,
        "dtype": torch.float32,
        "keep_z": True,
        "keep_x": True,
    }
    return torch.ops.aim_fast.adapter_forward(*(values | changes).values())


OP_BAD = {
    "activation": {"activation": "gelo"},
    "w1_width": {"w1": ones(H, 25)},
    "w1_rank": {"w1": ones(H)},
    "w2_shape": {"w2": ones(D, 9)},
    "b1_shape": {"b1": ones(H + 1)},
    "b2_shape": {"b2": ones(D - 1)},
    "scale_shape": {"scale": ones(5)},
    "residual_shape": {"residual": ones(3, 4, D)},
    "row_scale_shape": {"row_scale": ones(7)},
    "x_columns": {"x": ones(3, 5, 2 * D)[..., ::2], "w1": ones(H, 25)},
    "x_rank": {"x": ones(())},
    "dtype_int": {"dtype": torch.int32},
    "x_int": {"x": ones(3, 5, D, dtype=torch.int32), "w1": ones(H, D, dtype=torch.int32)},
}


@pytest.mark.parametrize("bad", OP_BAD.values(), ids=OP_BAD)
def test_operator_by_itself_raises(cpu_library: None, bad: dict[str, Any]) -> None:
    assert _forward()[0].shape == (3, 5, D)
    with pytest.raises((RuntimeError, ValueError, TypeError, KeyError, IndexError)):
        _forward(**bad)
