"""The faults that mutate.py plants: data only. Each is a slip that somebody could make, and the tests that must see it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """`old` stands exactly once in `file`; with `new` in its place the pytest arguments `tests` have to fail.

    needs: the instruction set without which the fault cannot show.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    needs: str = ""

    @property
    def compiled(self) -> bool:
        return self.file.startswith("csrc/")


def _only(file: str, *words: str) -> tuple[str, ...]:
    """The tests of a file whose names contain one of the words; all of them without."""
    return (f"tests/test_{file}.py", *(("-k", " or ".join(words)) if words else ()))


CHECKS, DISPATCH, FUNCTIONAL = _only("checks"), _only("dispatch"), _only("functional")
MIXED, MODULE, CHANGES, OPS = _only("mixed"), _only("module"), _only("module_changes"), _only("ops")
NONFINITE, NUMERICS, REFERENCE = _only("nonfinite"), _only("numerics"), _only("reference")
SAVED, TESTING, THREADS = _only("saved_memory"), _only("testing"), _only("threads")

# fmt: off
_PYTHON = (
    # The truth that everything else is judged by.
    ("reference_tanh_for_erf", "aim_fast/reference.py", 'F.gelu, _aten.gelu_backward)',
     'lambda z: F.gelu(z, approximate="tanh"), _aten.gelu_backward)', REFERENCE),
    ("reference_quick_gelu", "aim_fast/reference.py", "return z * torch.sigmoid(1.702 * z)",
     "return z * torch.sigmoid(1.7 * z)", REFERENCE),
    ("reference_no_skip_gradient", "aim_fast/reference.py", "(dx + dy if skip else dx)", "(dx)", REFERENCE),
    ("reference_row_scale", "aim_fast/reference.py", "rows = rows * row_scale.to(dtype)",
     "rows = rows + 0 * row_scale.to(dtype)", REFERENCE),
    ("reference_scale_in_dw2", "aim_fast/reference.py", "(branch.t() @ h)", "(rows.t() @ h)", REFERENCE),
    ("reference_promotion", "aim_fast/reference.py", "dtype = torch.promote_types(dtype, residual.dtype)",
     "pass", OPS),
    # Autograd and mixed precision.
    ("z_kept_when_recomputing", "aim_fast/functional.py", "keep_z = through_z and not recompute", "keep_z = through_z",
     SAVED),
    ("x_kept_for_nothing", "aim_fast/functional.py", "keep_x = w1.requires_grad or (through_z and recompute)",
     "keep_x = True", SAVED),
    ("wide_x_kept", "aim_fast/functional.py", "x.to(dtype) if keep_x and dtype.itemsize < x.dtype.itemsize else None",
     "None", SAVED),
    ("autocast_ignored", "aim_fast/functional.py", "return torch.get_autocast_dtype(device)", "return dtype", MIXED),
    ("double_rounded_by_autocast", "aim_fast/functional.py", "dtype is torch.float64 or", "", MIXED),
    ("float_scale_dropped", "aim_fast/functional.py", "(float(scale), None)", "(1.0, None)", _only("numerics", "h196")),
    ("no_residual_gradient", "aim_fast/functional.py", "if ctx.needs_input_grad[7] and dy is not None else None",
     "if False else None", FUNCTIONAL),
    ("double_backward_through_z", "aim_fast/functional.py", "x_dtype, wanted, dz\n", "x_dtype, wanted, None\n",
     FUNCTIONAL),
    ("y_is_x_for_zero_weights", "aim_fast/functional.py", "    choice = dispatch.select(",
     "    if skip and not w2.any() and b2 is not None and not b2.any():\n        return x\n    choice = dispatch.select(",
     _only("functional", "zero_branch")),
    # Fake kernels.
    ("fake_layout", "aim_fast/ops.py", "if t.is_contiguous() or not _is_dense_rows(t):", "if True:", OPS),
    # Dispatch.
    ("forced_backend_falls_back", "aim_fast/dispatch.py", 'if forced not in ("auto", row.name):',
     'if forced not in ("auto", row.name) and row.name != "eager":', DISPATCH),
    ("backend_not_restored", "aim_fast/dispatch.py", "    finally:\n        _forced.name = before",
     "    finally:\n        pass", DISPATCH),
    ("backend_of_all_threads", "aim_fast/dispatch.py", "class _Forced(threading.local):", "class _Forced:", DISPATCH),
    # Argument errors.
    ("row_scale_not_checked", "aim_fast/checks.py", "got not in (1, want)", "False", CHECKS),
    ("residual_not_checked", "aim_fast/checks.py", "if residual is not None:\n        _shape(",
     "if False:\n        _shape(", CHECKS),
    ("layout_not_checked", "aim_fast/checks.py", "            or value.layout is not torch.strided\n", "", CHECKS),
    # Modules.
    ("hooks_ignored", "aim_fast/module.py", "module._forward_hooks or", "", CHANGES),
    ("any_slope", "aim_fast/module.py", '"leaky_relu" if act.negative_slope == 0.01 else None', '"leaky_relu"', MODULE),
    ("skip_connect_ignored", "aim_fast/module.py", "return bool(self.skip_connect)", "return True", MODULE),
    ("mlp_adapter_not_zeroed", "aim_fast/module.py", '("S_Adapter", "T_Adapter", "MLP_Adapter")',
     '("S_Adapter", "T_Adapter")', MODULE),
    # The budget itself.
    ("budget_lets_nan_pass", "aim_fast/testing.py", "ok = bool((error <= allowed).all())",
     "ok = not bool((error > allowed).any())", TESTING),
    ("budget_without_rows", "aim_fast/testing.py", "width = exact.shape[-1] if per_row and exact.dim() else exact.numel()",
     "width = exact.numel()", TESTING),
)

_KERNELS = (
    # Activations.
    ("tanh_for_erf", "csrc/cpu/activation.h", "return f(Gelu{});", "return f(GeluTanh{});",
     _only("numerics", "gelu_fp32", "pointwise")),
    ("erf_coefficient", "csrc/cpu/activation.h", "0.230739988f", "0.233047388f", _only("numerics", "gelu_fp32", "pointwise")),
    ("gelu_derivative", "csrc/cpu/activation.h", "derivative = z * density + law;", "derivative = law;",
     _only("numerics", "gelu_fp32", "pointwise")),
    ("leaky_slope_of_gradient", "csrc/cpu/activation.h", "splat(1.0f), splat(0.01f))", "splat(1.0f), splat(0.0f))",
     _only("numerics", "leaky_relu_fp32", "pointwise")),
    ("nan_swallowed_by_relu", "csrc/cpu/activation.h", "return select(z < 0.0f, Float{}, z);",
     "return select(z > 0.0f, z, Float{});", NONFINITE),
    # Forward.
    ("missing_b1", "csrc/cpu/forward.h", "load_vector<Float>(c + r * kNR + j) + load_vector<Float>(b1_ + n + j)",
     "load_vector<Float>(c + r * kNR + j)", NUMERICS),
    ("missing_b2", "csrc/cpu/forward.h", "widen(p_.b2, p_.D, p_.D, 1.0f, 0.0f, b2_);",
     "widen(Array{}, p_.D, p_.D, 1.0f, 0.0f, b2_);", NUMERICS),
    ("scale_of_the_first_column", "csrc/cpu/forward.h", "widen(p_.scale, p_.D, p_.scale_size, 1.0f, 1.0f, scale_);",
     "widen(p_.scale, p_.D, 1, 1.0f, 1.0f, scale_);", NUMERICS),
    ("no_skip", "csrc/cpu/forward.h", "if (p_.skip) add_rows(", "if (false) add_rows(", NUMERICS),
    ("residual_by_strides_of_x", "csrc/cpu/forward.h",
     "if (p_.residual) row_pointers(p_.residual, first, count, rows.residual);",
     "if (p_.residual) {\n      Rows wrong = p_.x;\n      wrong.data = p_.residual.data;\n"
     "      row_pointers(wrong, first, count, rows.residual);\n    }", _only("numerics", "transposed")),
    ("few_rows_tail_dropped", "csrc/cpu/few.h", "  if (whole < K) {", "  if (false) {", NUMERICS),
    ("few_rows_half_the_lanes", "csrc/cpu/few.h", "int width = kLanes / 2", "int width = kLanes / 4", NUMERICS),
    ("last_row_dropped", "csrc/cpu/forward.h", "count = least(blocks_.rows, p_.M - first);",
     "count = least(blocks_.rows, p_.M - first - (p_.M - first < blocks_.rows));", NUMERICS),
    ("z_after_activation", "csrc/cpu/forward.h", "    if (p_.z) {", "    if (p_.z && p_.activation != Activation::kTanh) {",
     _only("numerics", "tanh")),
    ("hidden_not_rounded", "csrc/cpu/forward.h", "Op::kPerUnit == 2 ? h : rounded(h, p_.dtype)",
     "Op::kPerUnit == 2 ? h : rounded(h, Dtype::kBFloat16)", NUMERICS),
    ("padding_not_cleared", "csrc/cpu/rows.h", "if (columns == kNR) return;\n  for (int64_t r = 0; r < count; ++r) {\n    for (int64_t j = columns;",
     "if (columns) return;\n  for (int64_t r = 0; r < count; ++r) {\n    for (int64_t j = columns;", NONFINITE),
    # Rows.
    ("last_column_not_stored", "csrc/cpu/rows.h", "store_part<S>(row + j, load_vector<Float>(c + j), columns - j);",
     "store_part<S>(row + j, load_vector<Float>(c + j), columns - j - 1);", NUMERICS),
    ("last_column_of_x_dropped", "csrc/cpu/pack.h", "for (int64_t i = k; i < n; ++i) part[i - k] = row[i];",
     "for (int64_t i = k; i < n - 1; ++i) part[i - k] = row[i];", NUMERICS),
    ("leading_dims_swapped", "csrc/common/params.h", "offset += m % size[i] * stride[i];",
     "offset += m % size[i] * stride[i - 1];", _only("numerics", "transposed")),
    ("offsets_of_32_bits", "csrc/common/params.h", "int64_t offset = 0;", "int32_t offset = 0;", _only("addressing", "two_leading")),
    ("row_step_of_32_bits", "csrc/cpu/rows.h", "const int64_t step = t.ndim", "const int32_t step = t.ndim",
     _only("addressing", "far_apart")),
    ("row_scale_ignored", "csrc/cpu/rows.h", "if (!row_scale) return;", "return;", _only("numerics", "sample_scale", "token")),
    # Rounding and storage.
    ("bf16_truncated", "csrc/cpu/dtypes.h", "(u + 0x7fff + ((u >> 16) & 1)) >> 16", "u >> 16", _only("numerics", "rounding")),
    ("bf16_ties_up", "csrc/cpu/dtypes.h", "(u + 0x7fff + ((u >> 16) & 1)) >> 16", "(u + 0x8000) >> 16",
     _only("numerics", "rounding")),
    ("fp16_subnormals", "csrc/cpu/dtypes.h", "(Float)((u & 0x7fff) << 13) * 0x1p112f",
     "(Float)(((u & 0x7fff) << 13) + 0x38000000u)", _only("numerics", "rounding")),
    # Backward.
    ("no_skip_gradient", "csrc/cpu/backward.h", "if (p_.skip) add_rows(", "if (false) add_rows(", NUMERICS),
    ("row_scale_not_in_dz", "csrc/cpu/backward.h", "load_vector<Float>(c + at) * (p_.alpha * factors[r])",
     "load_vector<Float>(c + at) * p_.alpha", _only("numerics", "sample_scale", "token")),
    ("row_scale_not_in_dw2", "csrc/cpu/backward.h", "store_vector(h + at, value * factors[r]);",
     "store_vector(h + at, value);", _only("numerics", "sample_scale", "token")),
    ("row_scale_not_in_db2", "csrc/cpu/backward.h", "load_part<S>(row + j, p_.D - j) * factors[r]",
     "load_part<S>(row + j, p_.D - j)", _only("numerics", "sample_scale", "token")),
    ("scale_not_in_dw2", "csrc/cpu/backward.h", "g * (scale_[d] * p_.alpha)", "g * p_.alpha", _only("numerics", "scale")),
    ("scale_not_in_dz", "csrc/cpu/backward.h", "p_.scale ? scale_ : nullptr, lines);", "nullptr, lines);",
     _only("numerics", "scale")),
    ("alpha_not_in_db2", "csrc/cpu/backward.h", "return p_.alpha * scale_[d] * db2_[d];", "return scale_[d] * db2_[d];",
     _only("numerics", "h196", "token")),
    ("dscale_without_alpha", "csrc/cpu/backward.h", "p_.alpha * (p_.scale_size == 1 ? total : dscale_[d])",
     "p_.scale_size == 1 ? total : dscale_[d]", OPS),
    ("dscale_without_b2", "csrc/cpu/backward.h", " + b2 * factors[m + r];", ";", _only("numerics", "scale")),
    ("sums_by_threads", "csrc/cpu/backward.h", "blocks_(cut_rows(p_.M, kMinBlocks))", "blocks_(cut_rows(p_.M, p_.threads))",
     _only("threads", "number_of_threads")),
    ("recompute_without_bias", "csrc/cpu/backward.h", "widen(p_.b1, p_.H, p_.H, 1.0f, 0.0f, b1_);",
     "widen(Array{}, p_.H, p_.H, 1.0f, 0.0f, b1_);", _only("functional", "recompute")),
    ("first_block_only", "csrc/cpu/backward.h", "const int64_t first = (first_block_ + i) * blocks_.rows",
     "const int64_t first = i * blocks_.rows", NUMERICS),
    # Buffers and binding.
    ("scratch_shared_by_threads", "csrc/cpu/scratch.cpp", "static thread_local Buffer", "static Buffer", THREADS),
    ("y_laid_out_as_x", "csrc/binding.cpp", "empty_like(residual ? *residual : x, out)", "empty_like(x, out)", OPS),
    ("promotion_of_residual", "csrc/binding.cpp", "out = promote(out, p.residual.dtype);", "", MIXED),
    ("row_scale_not_broadcast", "csrc/binding.cpp", "own == 1 ? 0 : t->stride(i - missing)", "t->stride(i - missing)",
     _only("numerics", "sample_scale", "last_scale", "one_scale")),
)

_FWD, _BWD, _DW = "kernels/adapter_fwd.py", "kernels/adapter_bwd.py", "kernels/adapter_bwd_dw.py"
_TRITON = (
    ("triton_normal_law", "kernels/activation.py", "b_p * b_t + 0.230739988", "b_p * b_t + 0.2307", _only("triton_numerics", "pointwise")),
    ("triton_relu_stops_nan", "kernels/activation.py", "tl.where(b_z < 0, 0.0, b_z)", "tl.where(b_z > 0, b_z, 0.0)",
     _only("triton_numerics", "nonfinite")),
    ("triton_tanh_near_zero", "kernels/activation.py", "b_square - 3.33332819422e-1", "b_square - 3.332e-1", _only("triton_numerics", "pointwise")),
    ("triton_third_stride", "kernels/blocks.py", "return i_0 * stride_0 + (o_0", "return (o_0", _only("triton_numerics", "transposed_three")),
    ("triton_padding_of_h", _FWD, "b_h = tl.where(o_h < H, b_h, 0.0)", "b_h = b_h", _only("triton_numerics", "nonfinite")),
    ("triton_padding_of_dz", _BWD, "b_dz = tl.where(m_h[None, :], b_dz, 0.0)", "b_dz = b_dz", _only("triton_numerics", "nonfinite")),
    ("triton_32_bit_rows", _FWD, "i_m = tl.program_id(0).to(tl.int64) * BLOCK_M", "i_m = tl.program_id(0) * BLOCK_M",
     _only("triton_numerics", "32_bits")),
    ("triton_wide_scale_missing", _FWD, "b_y *= load(scale_ptr", "b_y *= 1 + 0 * load(scale_ptr", _only("triton_numerics", "scale_wide")),
    ("triton_bias_after_scale", _FWD, "b_y *= b_factor\n", "", _only("triton_numerics", "sample_scale")),
    ("triton_second_span", _FWD, "o_d = tl.program_id(1) * SPAN + i_d", "o_d = i_d", _only("triton_numerics", "divided")),
    ("triton_alpha_missing_in_dz", _BWD, "b_factor = alpha * b_row_scale", "b_factor = b_row_scale", _only("triton_numerics", "autocast")),
    ("triton_row_scale_not_in_h", _BWD, "(b_h * b_row_scale).to(COMPUTE)", "b_h.to(COMPUTE)", _only("triton_numerics", "sample_scale")),
    ("triton_row_scale_not_in_db2", _BWD, "tl.sum(b_dy * b_row_scale, 0)", "tl.sum(b_dy, 0)", _only("triton_numerics", "sample_scale")),
    ("triton_scale_not_in_dw2", _DW, "b_w = b_scale[:, None] * b_g", "b_w = b_g", _only("triton_numerics", "scale_wide")),
    ("triton_dscale_without_b2", _DW, "b_dscale += b_b * tl.load(b2_ptr", "b_dscale += 0 * b_b * tl.load(b2_ptr", _only("triton_numerics", "scale_one")),
    ("triton_last_slices", _DW, "for i in tl.range(0, slices, BLOCK_S):", "for i in tl.range(0, BLOCK_S, BLOCK_S):", _only("triton_numerics", "divided")),
    ("triton_merges_too_much", "aim_fast/triton_rows.py", "if merged and all(", "if merged and any(", _only("triton_tiling", "fold")),
    ("triton_y_of_the_copy", "aim_fast/triton_forward.py", "target.copy_(y)", "pass", _only("triton_numerics", "four_strided")),
    ("triton_dx_of_the_copy", "aim_fast/triton_backward.py", "dx.copy_(out)", "pass", _only("triton_numerics", "four_strided")),
    ("triton_z_in_x_dtype", "aim_fast/triton_forward.py", "w1.shape[0]), dtype=dtype)", "w1.shape[0]), dtype=x.dtype)", _only("triton_dispatch", "layout")),
    ("triton_last_part", "kernels/tiling.py", "or len(found) < MAX_PARTS - 1", "or len(found) < MAX_PARTS", _only("triton_tiling", "parts")),
    ("triton_any_gpu", "aim_fast/tuning.py", 'if Gpu(data["gpu"]["name"]', 'if False and Gpu(data["gpu"]["name"]', _only("triton_tuning", "bad_file")),
    ("triton_reach", "aim_fast/tuning.py", "if near is not None and M / REACH", "if near is not None and 0", _only("triton_tuning", "near_it")),
    ("triton_advice_ignored", "aim_fast/dispatch.py", "if advice.choose:", "if True:", _only("triton_dispatch", "few_rows")),
    ("triton_tf32_always", "aim_fast/triton_device.py", '"tf32" if allow_tf32() else "ieee"', '"tf32"', _only("triton_dispatch", "tf32")),
)
# fmt: on

MUTATIONS = tuple(Mutation(*row) for row in _PYTHON + _KERNELS + _TRITON)
