"""The faults that mutate.py plants: data only. Each is a slip that somebody could make, and the tests that must see it."""

from __future__ import annotations

from dataclasses import dataclass

import cuda_mutations


@dataclass(frozen=True)
class Mutation:
    """`old` stands exactly once in `file`; with `new` in its place the pytest arguments `tests` have to fail.

    needs: the instruction set without which the fault cannot show; it is planted in the library that emulates it.
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

    @property
    def emulated(self) -> bool:
        """Whether the library to be built again is the one whose CUDA kernels run on the CPU."""
        return self.file.startswith("csrc/cuda/")


def _only(file: str, *words: str) -> tuple[str, ...]:
    """The tests of a file whose names contain one of the words; all of them without."""
    return (f"tests/test_{file}.py", *(("-k", " or ".join(words)) if words else ()))


CHECKS, DISPATCH, FUNCTIONAL = _only("checks"), _only("dispatch"), _only("functional")
MIXED, MODULE, CHANGES, OPS = _only("mixed"), _only("module"), _only("module_changes"), _only("ops")
NONFINITE, NUMERICS, REFERENCE = _only("nonfinite"), _only("numerics"), _only("reference")
AMX_NUMERICS = _only("numerics", "amx")
SAVED, TESTING, THREADS = _only("saved_memory"), _only("testing"), _only("threads")
COMPILE, DISTRIBUTED = _only("compile"), _only("distributed")
EXPORT, TRANSFORMS = _only("export"), _only("transforms")
BENCHMARKS, PARTS, ON_CUDA = (
    _only("benchmarks", "wrong", "rival"),
    _only("bench_parts", "cache", "turns"),
    _only("on_cuda"),
)
TUNING, TILING = _only("triton_tuning", "noise"), _only("triton_tiling", "slices", "sum")
GPU_CHECK, GPU_STAGES = (
    _only("gpu_check", "outcome", "share", "exit", "alone"),
    _only("gpu_stages", "outcome", "kernel"),
)
GPU_REPORT, LIMITED = _only("gpu_report"), _only("limited", "job")

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
    ("wide_x_kept", "aim_fast/functional.py", "if not ops.narrows(x, dtype):", "if True:", SAVED),
    ("autocast_ignored", "aim_fast/functional.py", "return torch.get_autocast_dtype(device)", "return dtype", MIXED),
    ("double_rounded_by_autocast", "aim_fast/functional.py", "dtype is torch.float64 or", "", MIXED),
    ("float_scale_dropped", "aim_fast/functional.py", "float(scale), None", "1.0, None", _only("numerics", "h196")),
    ("no_residual_gradient", "aim_fast/functional.py", "if ctx.needs_input_grad[7] and dy is not None else None",
     "if False else None", FUNCTIONAL),
    ("double_backward_without_x_kept", "aim_fast/functional.py", "grads[0] = grads[0] + dx_kept.to(grads[0].dtype)", "pass", MIXED),
    ("double_backward_of_x_kept_alone", "aim_fast/functional.py", "if dx_kept is not None and ctx.needs_input_grad[0] else None", "if False else None", MIXED),
    ("double_backward_through_z", "aim_fast/functional.py", "x_dtype, wanted, dz\n", "x_dtype, wanted, None\n",
     FUNCTIONAL),
    ("y_is_x_for_zero_weights", "aim_fast/functional.py", "    backend = dispatch.choose(",
     "    if skip and not w2.any() and b2 is not None and not b2.any():\n        return x\n    backend = dispatch.choose(",
     _only("functional", "zero_branch")),
    # Fake kernels.
    ("fake_layout", "aim_fast/ops.py", "if t.is_contiguous() or not _is_dense_rows(t):", "if True:", OPS),
    # Dispatch.
    ("forced_backend_falls_back", "aim_fast/dispatch.py", 'if forced not in ("auto", row.name):',
     'if forced not in ("auto", row.name) and row.name != "eager":', DISPATCH),
    ("backend_not_restored", "aim_fast/dispatch.py", "    finally:\n        _forced.name = before",
     "    finally:\n        pass", DISPATCH),
    ("backend_of_all_threads", "aim_fast/dispatch.py", "class _Forced(threading.local):", "class _Forced:", DISPATCH),
    ("choice_without_grad_mode", "aim_fast/remembered.py",
     "        torch.is_grad_enabled() if call.train is None else call.train,\n", "", _only("remembered")),
    ("choice_of_an_old_table", "aim_fast/remembered.py", "        tuning.generation,\n", "", _only("remembered")),
    ("choice_of_another_thread", "aim_fast/remembered.py", "        forced,\n", "", _only("remembered", "grid", "threads")),
    ("choice_of_a_plain_call_in_a_transform", "aim_fast/remembered.py", "if transformed() or in_onnx_export():", "if False:",
     _only("remembered", "transforms")),
    ("choices_without_bound", "aim_fast/remembered.py", "if len(_chosen) >= MOST:", "if False:", _only("remembered", "bounded")),
    # The way to a kernel.
    ("past_modes", "aim_fast/routing.py", "or torch._C._dispatch_tls_local_include_set().raw_repr() not in _USUAL", "or False",
     _only("routing")),
    ("past_other_classes", "aim_fast/routing.py", "(type(t) not in PLAIN or t.is_neg())", "t.is_neg()", _only("routing", "way")),
    ("past_the_sign", "aim_fast/routing.py", "(type(t) not in PLAIN or t.is_neg())", "type(t) not in PLAIN", _only("routing", "way")),
    ("past_the_profiler", "aim_fast/routing.py", "or torch.autograd._profiler_enabled()", "or False", _only("routing", "way")),
    # Compilers, transforms and exports.
    ("transform_not_seen", "aim_fast/reference.py", "return torch._C._are_functorch_transforms_active() or",
     "return (torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling()) or",
     _only("transforms", "compiled")),
    ("forward_mode_not_seen", "aim_fast/reference.py", " or torch.autograd.forward_ad._current_level >= 0", "",
     _only("transforms", "forward_ad")),
    ("eager_backward_under_autocast", "aim_fast/reference.py", "    if torch.is_grad_enabled() and not transformed():\n", "    if False:\n",
     _only("mixed", "backward_ignores")),
    ("eager_backward_of_batches_under_autocast", "aim_fast/reference.py", "flat = x.dim() != 2", "flat = False",
     _only("reference", "backward_of_the_composition")),
    ("autocast_lost_in_compiled_autograd", "aim_fast/reference.py",
     "    if not torch.compiler.is_compiling():\n        torch.set_autocast", "    if True:\n        torch.set_autocast",
     _only("reference", "compiled_autograd")),
    ("fallback_under_autocast", "aim_fast/ops.py", "    with reference.no_autocast(dy.device.type):", "    if True:",
     _only("ops", "autocast")),
    ("onnx_not_seen", "aim_fast/remembered.py", 'return "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export()',
     "return False", _only("export", "onnx")),
    ("export_without_gradient", "aim_fast/functional.py", "ops.adapter_exported(*call) if exporting else _run(*call)",
     "_run(*call)", _only("export", "trains")),
    ("backend_of_the_export", "aim_fast/functional.py", 'ops._library.impl("adapter", _run, "CompositeImplicitAutograd")',
     'ops._library.impl("adapter", lambda x, w1, b1, w2, b2, scale, row_scale, residual, *call: ops.adapter_forward('
     'x, w1, b1, w2, b2, scale, row_scale, residual, *call[:-1], False)[0], "CompositeImplicitAutograd")', _only("export", "trains")),
    ("foreign_quick_gelu_while_tracing", "aim_fast/layers.py", "if torch.compiler.is_compiling():  # numbers", "if False:  # numbers",
     _only("compile", "unknown")),
    ("foreign_quick_gelu_not_learned", "aim_fast/module.py", "        activation_name(self.act)  # a class", "        # a class",
     _only("compile", "modules")),
    ("hooked_child_widens", "aim_fast/module.py", "(scale.to(y.dtype) if isinstance(scale, Tensor) else scale)", "scale",
     _only("mixed", "hook")),
    # Several processes.
    ("b2_on_every_rank", "aim_fast/parallel.py", "return b2.view_as(b2) if first else torch.zeros_like(b2)",
     "return b2.view_as(b2)", DISTRIBUTED),
    ("skip_on_every_rank", "aim_fast/parallel.py", "skip=skip and first,", "skip=skip,", DISTRIBUTED),
    ("residual_on_every_rank", "aim_fast/parallel.py", "if residual is not None and first else None",
     "if residual is not None else None", DISTRIBUTED),
    ("residual_without_gradient", "aim_fast/parallel.py", "grad.to(ctx.residual_dtype) if ctx.needs_input_grad[1] else None",
     "None", DISTRIBUTED),
    ("dx_of_one_rank", "aim_fast/parallel.py", "        _Copied.apply(x, mesh),", "        x,", DISTRIBUTED),
    ("dscale_of_one_rank", "aim_fast/parallel.py", "scale=_Copied.apply(scale, mesh) if isinstance(scale, Tensor) else scale",
     "scale=scale", DISTRIBUTED),
    ("gradients_of_one_ranks_rows", "aim_fast/parallel.py", "None if place == WHOLE else [Partial()]", "None", DISTRIBUTED),
    # Argument errors.
    ("row_scale_not_checked", "aim_fast/checks.py", "got not in (1, want)", "False", CHECKS),
    ("residual_not_checked", "aim_fast/checks.py", "if residual is not None and residual.shape != shape:",
     "if False:", CHECKS),
    ("layout_not_checked", "aim_fast/checks.py", "            or value.layout is not _STRIDED\n", "", CHECKS),
    # Modules.
    ("hooks_ignored", "aim_fast/layers.py", "        module._forward_hooks\n        or ", "        ", CHANGES),
    ("global_hooks_ignored", "aim_fast/layers.py", "        or torch_module._global_forward_hooks\n", "", CHANGES),
    ("any_slope", "aim_fast/layers.py", '"leaky_relu" if act.negative_slope == 0.01 else None', '"leaky_relu"', MODULE),
    ("skip_connect_ignored", "aim_fast/module.py", "return bool(self.skip_connect)", "return True", MODULE),
    ("mlp_adapter_not_zeroed", "aim_fast/module.py", '("S_Adapter", "T_Adapter", "MLP_Adapter")',
     '("S_Adapter", "T_Adapter")', MODULE),
    # Patching.
    ("patch_attributes_not_watched", "aim_fast/plan.py", "if type(now) is not type(value) or now != value:", "if False:",
     _only("patch", "changed_attribute")),
    ("patch_active_dropout", "aim_fast/layers.py", " and not (module.training and module.p)", "", _only("patch", "dropout")),
    ("patch_training_mode", "aim_fast/plan.py", "if module.training and not plan.training:", "if False:",
     _only("patch", "dropout")),
    ("patch_skip_not_scaled", "aim_fast/plan.py", "run(False, scale * x) if scaled", "run(False, x) if scaled",
     _only("patch", "scaled_sum")),
    ("patch_dtype_of_scale", "aim_fast/plan.py", "return y if wide is None else y.to(torch.promote_types(y.dtype, wide))",
     "return y", _only("patch_results", "dtype")),
    ("patch_replaced_child", "aim_fast/plan.py", "if other is None or type(other) is not kind or not is_plain(other):",
     "if False:", _only("patch_changes", "container")),
    ("patch_quantized_weight", "aim_fast/layers.py", "if type(t) in _PLAIN_TENSORS:", "if True:",
     _only("patch_changes", "quantized")),
    ("patch_drop_path_as_identity", "aim_fast/layers.py", 'if name != "identity" and all(', "if any(",
     _only("patch", "drop_path")),
    ("patch_without_gradients", "aim_fast/verification.py", "if not same(grads[0][name], grads[1][name])", "if False",
     _only("patch", "detached")),
    ("patch_autocast_off", "aim_fast/verification.py", "if not _keeps_autocast(probe, plan, next(iter(ranks))):",
     "if False:", _only("patch", "without_autocast")),
    ("patch_dims_not_tried", "aim_fast/verification.py", "for rank, fault in faults.items() if not fault)",
     "for rank in faults)", _only("patch", "scale_11d")),
    ("patch_random_state", "aim_fast/verification.py", "        torch.random.fork_rng(devices=[]),\n", "",
     _only("patch", "leaves_everything")),
    ("patch_runs_hooks", "aim_fast/recognition.py", 'if name.endswith("_hooks") and value', "if False",
     _only("patch", "leaves_everything")),
    ("patch_any_activation_child", "aim_fast/identification.py", "if _is_used(probe, path, key, rank, scale)", "if True",
     _only("patch", "act_unused")),
    ("patch_copies_not_fused", "aim_fast/patching.py", "    if not _is_patched(module):\n        module.__class__",
     "    if False:\n        module.__class__", _only("patch_changes", "copies")),
    ("patch_inner_first", "aim_fast/patching.py", "    if is_candidate(module):", "    if is_candidate(module) and not paths[id(module)][0]:",
     _only("patch_models", "table")),
    ("patch_stale_hidden", "aim_fast/late_results.py", "if [t._version for t in tracked] != versions:", "if False:",
     _only("patch_results", "looked_at")),
    # The example.
    ("aim_block_regroups", "examples/aim_vit.py", "        if rows.is_contiguous():\n", "        if True:\n",
     _only("aim_vit", "regrouped")),
    ("aim_block_drops_no_paths", "examples/aim_vit.py", "x = self.T_Adapter(over_time, row_scale=drop_path(x, rate), residual=x)",
     "x = self.T_Adapter(over_time, residual=x)", _only("aim_vit", "equal_results")),
    ("aim_bench_times_the_wrong", "benchmarks/bench_block.py", "        if not error.ok:", "        if False:",
     _only("bench_block", "refuses")),
    # The budget itself.
    ("budget_lets_nan_pass", "aim_fast/testing.py", "ok = bool((error <= allowed).all())",
     "ok = not bool((error > allowed).any())", TESTING),
    ("budget_without_rows", "aim_fast/testing.py", "width = exact.shape[-1] if per_row and exact.dim() else exact.numel()",
     "width = exact.numel()", TESTING),
    # The benchmark and gpu-check.
    ("one_set_too_few", "benchmarks/harness.py", "math.ceil(FLUSHES *", "math.floor(FLUSHES *", PARTS),
    ("sets_by_rival", "benchmarks/harness.py", "steps[name][next(turns)] for _ in range(burst)",
     "steps[name][_ % len(steps[name])] for _ in range(burst)", PARTS),
    ("wrong_rival_timed", "benchmarks/bench_adapter.py", "for name in [name for name in calls if wrong[name]]:",
     "for name in []:", BENCHMARKS),
    ("prepare_timed", "aim_fast/device_clock.py", "        state = one.prepare()\n        start.record()\n",
     "        start.record()\n        state = one.prepare()\n", ON_CUDA),
    ("host_time_for_device_time", "aim_fast/device_clock.py", "if host < waited:", "if True:", ON_CUDA),
    ("bursts_that_fill_the_queue", "aim_fast/device_clock.py", "BURST = 16", "BURST = 100", ON_CUDA),
    ("milliseconds_for_seconds", "aim_fast/device_clock.py", "start.elapsed_time(end) / 1e3", "start.elapsed_time(end)", ON_CUDA),
    ("noise_chooses", "aim_fast/tune.py", "(1 - NOISE) * times[step]", "times[step]", TUNING),
    ("weights_summed_without_end", "kernels/tiling.py", "max(plan.split, -(-M // LONGEST_SUM[load]))", "plan.split", TILING),
    ("peak_with_what_was_there", "benchmarks/on_cuda.py", "torch.cuda.max_memory_allocated() - before",
     "torch.cuda.max_memory_allocated()", ON_CUDA),
    ("late_stage_passes", "benchmarks/gpu_outcome.py", '"out of time" if done.late or', '"out of time" if', GPU_STAGES),
    ("crash_passes", "benchmarks/gpu_outcome.py", "if failed or (done.status and not done.late):", "if failed:", GPU_STAGES),
    ("hazards_pass", "benchmarks/gpu_stages.py", "int(found[1] or found[2]) > 0", "int(found[1] or 0) > 0", GPU_STAGES),
    ("stages_in_turn", "benchmarks/limited.py", "ThreadPoolExecutor(len(jobs))", "ThreadPoolExecutor(1)", LIMITED),
    ("ratio_of_two_processes", "benchmarks/gpu_report.py", "for row in (*same, stays):", "for row in (stays, *same):", GPU_REPORT),
    ("failed_kernel_hidden", "benchmarks/gpu_outcome.py", 'key=("failed", "out of time", "left out", "passed").index',
     'key=("passed", "failed", "out of time", "left out").index', GPU_STAGES),
    ("stage_breaks_the_others", "benchmarks/gpu_check.py", "except Exception as error:  #", "except OSError as error:  #",
     GPU_CHECK),
    ("replay_of_old_values", "tests/device_checks.py", "if not torch.equal(a, b)]\n    assert not different, f\"the replay",
     "if a.shape != b.shape]\n    assert not different, f\"the replay", _only("device_checks")),
    ("refusal_of_the_essential", "tests/device_checks.py", "is_refusal(error) and not must_be_taken(case)", "is_refusal(error)",
     _only("device_checks")),
    ("layout_lost_on_the_way", "tests/judge.py", "return whole.to(device).as_strided(t.shape, t.stride(), t.storage_offset())",
     "return t.to(device)", _only("judge", "layouts")),
)

_KERNELS = (
    # Activations.
    ("tanh_for_erf", "csrc/cpu/activation.h", "return f(Gelu{});", "return f(GeluTanh{});",
     _only("numerics", "gelu_fp32", "pointwise")),
    ("erf_coefficient", "csrc/cpu/activation.h", "-6.14333265e-2f", "-6.14433265e-2f", _only("numerics", "gelu_fp32", "pointwise")),
    ("gelu_derivative", "csrc/cpu/activation.h", "sigmoidal(kDerivative, z, derivative);", "sigmoidal(kLaw, z, derivative);",
     _only("numerics", "gelu_fp32", "pointwise")),
    ("law_beyond_its_bound", "csrc/cpu/activation.h", "select(z[k] * z[k] > kBound * kBound,", "select(z[k] * z[k] > 36.0f * kBound,",
     _only("numerics", "gelu_fp32", "pointwise")),
    ("infinite_z_in_derivative", "csrc/cpu/activation.h", "derivative[k] += z[k] * 0.0f;", ";", NONFINITE),
    ("leaky_slope_of_gradient", "csrc/cpu/activation.h", "splat(1.0f), splat(0.01f))", "splat(1.0f), splat(0.0f))",
     _only("numerics", "leaky_relu_fp32", "pointwise")),
    ("nan_swallowed_by_relu", "csrc/cpu/activation.h", "return select(z < 0.0f, Float{}, z);",
     "return select(z > 0.0f, z, Float{});", NONFINITE),
    # Forward.
    ("missing_b1", "csrc/cpu/forward_tiles.h", "const Span z = load_span(c + (r + i) * kNR) + bias;",
     "const Span z = load_span(c + (r + i) * kNR);", NUMERICS),
    ("missing_b2", "csrc/cpu/forward_tiles.h", "widen(p_.b2, p_.D, p_.D, 1.0f, 0.0f, b2_);",
     "widen(Array{}, p_.D, p_.D, 1.0f, 0.0f, b2_);", NUMERICS),
    ("scale_of_the_first_column", "csrc/cpu/forward_tiles.h", "widen(p_.scale, p_.D, p_.scale_size, 1.0f, 1.0f, scale_);",
     "widen(p_.scale, p_.D, 1, 1.0f, 1.0f, scale_);", NUMERICS),
    ("no_skip", "csrc/cpu/forward_tiles.h", "if (p_.skip) {", "if (false) {", NUMERICS),
    ("skip_from_the_wrong_tile", "csrc/cpu/forward_tiles.h", "rows.lines + m * lines_of", "rows.lines + (m + kMR) * lines_of", NUMERICS),
    ("rounded_x_for_the_skip", "csrc/cpu/forward.h", "if (rounding(p_.x.dtype, p_.dtype) == Dtype::kFloat32) rows.lines = x;",
     "rows.lines = x;", _only("mixed", "passes_by")),
    ("residual_by_strides_of_x", "csrc/cpu/forward_tiles.h",
     "if (p.residual) row_pointers(p.residual, first, count, residual);",
     "if (p.residual) {\n      Rows wrong = p.x;\n      wrong.data = p.residual.data;\n"
     "      row_pointers(wrong, first, count, residual);\n    }", _only("numerics", "transposed")),
    ("few_rows_of_four_are_three", "csrc/cpu/few.h", "least<int64_t>(4, rows - i)", "least<int64_t>(3, rows - i)", NUMERICS),
    ("few_rows_tail_dropped", "csrc/cpu/few.h", "  if (whole < K) {", "  if (false) {", NUMERICS),
    ("few_rows_half_the_lanes", "csrc/cpu/few.h", "int width = kLanes / 2", "int width = kLanes / 4", NUMERICS),
    ("last_row_dropped", "csrc/cpu/forward.h", "rows(p_, first, least(blocks_.rows, p_.M - first));",
     "rows(p_, first, least(blocks_.rows, p_.M - first - (p_.M - first < blocks_.rows)));", NUMERICS),
    ("z_after_activation", "csrc/cpu/forward_tiles.h", "if (p_.z && r + i < rows) store_columns(", "if (p_.z && r + i < rows && p_.activation != Activation::kTanh) store_columns(",
     _only("numerics", "tanh")),
    ("hidden_not_rounded", "csrc/cpu/forward_tiles.h", "h = {rounded(h.low, p_.dtype), rounded(h.high, p_.dtype)};",
     "h = {rounded(h.low, Dtype::kBFloat16), rounded(h.high, Dtype::kBFloat16)};", NUMERICS),
    ("padding_not_cleared", "csrc/cpu/rows.h", "if (columns == kNR) return;\n  for (int64_t r = 0; r < count; ++r) {\n    for (int64_t j = columns;",
     "if (columns) return;\n  for (int64_t r = 0; r < count; ++r) {\n    for (int64_t j = columns;", NONFINITE),
    # Rows.
    ("last_column_not_stored", "csrc/cpu/rows.h", "store_part<S>(p, v.low, columns);",
     "store_part<S>(p, v.low, columns - 1);", NUMERICS),
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
    ("no_skip_gradient", "csrc/cpu/gradients.h", "if (p.skip) dx = ", "if (false) dx = ", NUMERICS),
    ("scaled_dy_for_the_skip", "csrc/cpu/backward.h", "const bool exact = !p_.scale && ", "const bool exact = ", _only("numerics", "scale")),
    ("few_rows_without_skip_gradient", "csrc/cpu/few_backward.h", "if (p_.skip) dx = ", "if (false) dx = ", NUMERICS),
    ("few_rows_scale_not_in_dz", "csrc/cpu/few_backward.h", "row_product(scaled_,", "row_product(dy_,", NUMERICS),
    ("few_rows_alpha_not_in_dw2", "csrc/cpu/few_backward.h", "p_.alpha * scale_[d], p_.dw2, d)", "scale_[d], p_.dw2, d)", NUMERICS),
    ("few_rows_without_b2_in_dscale", "csrc/cpu/few_backward.h", "f[m * kNR + d - n] + b2_[d] * factors_[m]", "f[m * kNR + d - n]", NUMERICS),
    ("few_rows_recompute_without_bias", "csrc/cpu/few_backward.h", "load_span(c + m * kNR) + load_span(b1_ + n)", "load_span(c + m * kNR)", FUNCTIONAL),
    ("row_scale_not_in_dz", "csrc/cpu/gradients.h", "load_span(c + row * kNR) * (p.alpha * factors[row])",
     "load_span(c + row * kNR) * p.alpha", _only("numerics", "sample_scale", "token")),
    ("row_scale_not_in_dw2", "csrc/cpu/gradients.h", "Span{z[2 * i], z[2 * i + 1]} * factors[r + i]);",
     "Span{z[2 * i], z[2 * i + 1]});", _only("numerics", "sample_scale", "token")),
    ("row_scale_not_in_db2", "csrc/cpu/gradients.h", "load_columns(rows[r], n, columns, dtype) * factors[r]",
     "load_columns(rows[r], n, columns, dtype)", _only("numerics", "sample_scale", "token")),
    ("scale_not_in_dw2", "csrc/cpu/gradients.h", "block[k] * (scale[d] * p.alpha)", "block[k] * p.alpha", _only("numerics", "scale")),
    ("scale_not_in_dz", "csrc/cpu/backward.h", "p_.scale ? scale_ : nullptr, lines);", "nullptr, lines);",
     _only("numerics", "scale")),
    ("alpha_not_in_db2", "csrc/cpu/gradients.h", "return p.alpha * scale[d] * db2[d];", "return scale[d] * db2[d];",
     _only("numerics", "h196", "token")),
    ("dscale_without_alpha", "csrc/cpu/gradients.h", "p.alpha * (p.scale_size == 1 ? total : dscale[d])",
     "p.scale_size == 1 ? total : dscale[d]", OPS),
    ("dscale_without_b2", "csrc/cpu/gradients.h", " + bias * factors[r];", ";", _only("numerics", "scale")),
    ("sums_by_threads", "csrc/cpu/backward.h", "blocks_(cut_rows<Op>(p_.M, kCutFor))", "blocks_(cut_rows<Op>(p_.M, p_.threads))",
     _only("threads", "number_of_threads")),
    ("recompute_without_bias", "csrc/cpu/backward.h", "widen(p_.b1, p_.H, p_.H, 1.0f, 0.0f, b1_);",
     "widen(Array{}, p_.H, p_.H, 1.0f, 0.0f, b1_);", _only("functional", "recompute")),
    ("first_block_only", "csrc/cpu/backward.h", "return block(i, first_block(step) + i);",
     "return block(i, i);", NUMERICS),
    ("last_row_of_a_tile_not_in_db2", "csrc/cpu/gradients.h", "r < least(count, m + kMR); ++r", "r < least(count, m + kMR - 1); ++r", NUMERICS),
    # Some hundred rows, by panels.
    ("panels_skip_the_last_share", "csrc/cpu/panels.h", "end = least((i + 1) * panels / p.threads * kNR, p.H);",
     "end = least((i + 1) * (panels / p.threads) * kNR, p.H);", _only("threads", "panels")),
    ("panels_last_column_of_y", "csrc/cpu/panel_forward.h", "least<int64_t>(kNR, p_.D - first), lines_h_", "least<int64_t>(kNR, p_.D - first - 1), lines_h_", NUMERICS),
    ("panels_without_scale_in_dz", "csrc/cpu/panel_backward.h", "p_.scale ? scale_ : nullptr;", "nullptr;", _only("numerics", "scale")),
    ("panels_scaled_dy_in_dw2", "csrc/cpu/panel_backward.h", "store_dw2(p_, first, scale_, own.row);", "store_dw2(p_, first, b2_, own.row);", NUMERICS),
    ("first_run_of_rows_only", "csrc/cpu/gradients.h", "m < count; m += run", "m < least(run, count); m += run", NUMERICS),
    ("left_columns_of_a_panels_first", "csrc/cpu/gemm.h", "n / kNR * panel + n % kNR * kLeft;", "n / kNR * panel;", NUMERICS),
    ("left_columns_of_the_first_panel", "csrc/cpu/gemm.h", "n / kNR * panel + n % kNR * kLeft;", "n % kNR * kLeft;", NUMERICS),
    ("panels_left_of_the_first_tile", "csrc/cpu/panel_backward.h", "along = first / kNR * along_ + m / Op::kPerUnit * kNR;", "along = first / kNR * along_;", NUMERICS),
    ("panels_recompute_without_bias", "csrc/cpu/panel_backward.h", "load_span(c + r * kNR) + load_span(b1_ + first)", "load_span(c + r * kNR)", FUNCTIONAL),
    ("panels_again_without_mending", "csrc/cpu/panel_backward.h", "mend<Op>(rows, p_.w1,", "if (p_.z) mend<Op>(rows, p_.w1,", NONFINITE, "amx"),
    ("panels_sums_not_cleared", "csrc/cpu/panel_backward.h", "    __builtin_memset(own.row, 0, round_up(p_.H, kStep) * kNR * sizeof(float));\n", "", NUMERICS),
    ("panels_db1_not_cleared", "csrc/cpu/panel_backward.h", "    for (int j = 0; j < kNR; ++j) db1_[first + j] = 0.0;\n", "", NUMERICS),
    ("panels_dscale_of_the_first_panel", "csrc/cpu/panel_backward.h", "b2_, c), dscale_ + first);", "b2_, c), dscale_);", _only("numerics", "scale")),
    ("x_kept_of_the_first_rows", "csrc/cpu/forward_tiles.h", "(rows.first + begin) * row", "begin * row", _only("ops", "round_it")),
    ("panels_keep_a_share_of_x", "csrc/cpu/panel_forward.h", "tiles_.keep_x(rows_, i * p_.M", "if (i == 0) tiles_.keep_x(rows_, i * p_.M", _only("ops", "round_it")),
    ("few_rows_keep_no_x", "csrc/cpu/few_forward.h", "    tiles_.keep_x(rows_, 0, p_.M);\n", "", _only("ops", "round_it")),
    ("pages_given_back", "csrc/cpu/pages.cpp", "MADV_POPULATE_WRITE);", "MADV_DONTNEED);", _only("addressing", "pages")),
    ("step_does_not_wait", "csrc/binding.cpp", "done.load(std::memory_order_acquire) < count;",
     "done.load(std::memory_order_acquire) < 0;", THREADS),
    # Products on matrix tiles, of operands in parts.
    ("amx_columns_of_b", "csrc/cpu/matrix.h", "load<7>(b + part * b_part + 16, b_stride);", "load<7>(b + part * b_part, b_stride);", AMX_NUMERICS, "amx"),
    ("amx_sums_not_cleared", "csrc/cpu/gemm.h", "  sums.zero();\n  for (", "  for (", AMX_NUMERICS, "amx"),
    ("amx_sums_replaced", "csrc/cpu/gemm.h", "load_vector<Float>(c + i) + load_vector<Float>(sum + i)", "load_vector<Float>(sum + i)", AMX_NUMERICS, "amx"),
    ("amx_units_not_turned", "csrc/cpu/rows.h", "        transpose(v[i]);\n", "", AMX_NUMERICS, "amx"),
    ("amx_lines_of_rows_not_padded", "csrc/cpu/rows.h", "first + 2 * u < rows; ++u) {", "first + 2 * u < rows - 1; ++u) {", AMX_NUMERICS, "amx"),
    ("split_without_middle_parts", "csrc/cpu/matrix.h", "if constexpr (kParts > 1) right(1), multiply();", "", AMX_NUMERICS, "amx"),
    ("split_in_two", "csrc/cpu/split.h", "(rest - (Float)(second & kUpper))", "Float{}", AMX_NUMERICS, "amx"),
    ("split_inf_lost", "csrc/cpu/split.h", "rest = rest == rest ? rest : Float{};", "", NONFINITE, "amx"),
    ("split_rows_not_mended", "csrc/cpu/mend.h", "if (is_finite(all)) return;", "return;", NONFINITE, "amx"),
    ("split_first_row_mended", "csrc/cpu/mend.h", "dot_product(left(r),", "dot_product(left(0),", NONFINITE, "amx"),
    ("split_again_without_mending", "csrc/cpu/backward.h", "mend<Op>(rows, p_.w1,", "if (p_.z) mend<Op>(rows, p_.w1,", NONFINITE, "amx"),
    ("split_parts_of_one_plane", "csrc/cpu/gradients.h", "units, panel, part);", "units, panel, 0);", AMX_NUMERICS, "amx"),
    # Buffers and binding.
    ("scratch_shared_by_threads", "csrc/cpu/scratch.cpp", "static thread_local Buffer", "static Buffer", THREADS),
    ("y_laid_out_as_x", "csrc/binding_call.h", "empty_like(residual ? *residual : x, out, pages)", "empty_like(x, out, pages)", OPS),
    ("promotion_of_residual", "csrc/binding_call.h", "out = promote(out, p.residual.dtype);", "", MIXED),
    ("row_scale_not_broadcast", "csrc/binding_tensors.h", "own == 1 ? 0 : t->stride(i - missing)", "t->stride(i - missing)",
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
    ("triton_any_gpu", "aim_fast/tuning.py", "if measured != (gpu", "if False and measured != (gpu", _only("triton_tuning", "bad_file")),
    ("shipped_for_any_gpu", "aim_fast/tuning.py", "if measured != (gpu", "if not shipped and measured != (gpu", _only("shipped")),
    ("triton_reach", "aim_fast/tuning.py", "if near is not None and M / REACH", "if near is not None and 0", _only("triton_tuning", "near_it")),
    ("triton_advice_ignored", "aim_fast/dispatch.py", "if advice.choose:", "if True:", _only("triton_dispatch", "few_rows")),
    ("triton_tf32_always", "aim_fast/triton_device.py", '"tf32" if allow_tf32() else "ieee"', '"tf32"', _only("triton_dispatch", "tf32")),
)
# fmt: on

MUTATIONS = tuple(Mutation(*row) for row in _PYTHON + _KERNELS + _TRITON + cuda_mutations.ROWS)
