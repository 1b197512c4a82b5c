"""Faults for mutate.py in the CUDA kernels, whose tests run them emulated, and in the emulator: data only."""

from __future__ import annotations

_ALL = ("tests/test_cuda_numerics.py", "tests/test_cuda_calls.py")
_FILES = ("tests/test_cuda_files.py",)
_EMULATOR = ("tests/test_emulator.py",)
_CONSUMER, _PRODUCER = "csrc/cuda/hopper/rows_consumer.h", "csrc/cuda/hopper/rows_producer.h"
_STAGING, _OUTPUT = "csrc/cuda/hopper/rows_staging.h", "csrc/cuda/hopper/rows_output.h"
_RING, _ROWS = "csrc/cuda/hopper/rows_ring.h", "csrc/cuda/hopper/rows_kernel.h"
_COLUMNS, _LAYOUT, _SUM = "csrc/cuda/hopper/columns_kernel.h", "csrc/cuda/hopper/columns_layout.h", "csrc/cuda/sum.cu"
_TILE, _TILES = "csrc/cuda/ampere/rows_tile.h", "csrc/cuda/ampere/tiles.h"
_AMPERE_RING = "csrc/cuda/ampere/rows_ring.h"
_FORWARD, _BACKWARD = "csrc/cuda/ampere/rows_forward.h", "csrc/cuda/ampere/rows_backward.h"
_AMPERE_COLUMNS = "csrc/cuda/ampere/columns.h"
_PRODUCT, _EPILOGUES = "csrc/cuda/tiles/product.h", "csrc/cuda/tiles/epilogues.h"
_OPERANDS, _MULTIPLY_ADD = "csrc/cuda/tiles/operands.h", "csrc/cuda/tiles/multiply_add.h"
_TENSOR_CORES = "csrc/cuda/tiles/tensor_cores.h"
_TILES_ROWS, _TILES_COLUMNS = "csrc/cuda/tiles/rows.cu", "csrc/cuda/tiles/columns.cu"
_KERNELS_CPP = "csrc/cuda/kernels.cpp"
_ACTIVATION, _CONVERT = "csrc/cuda/activation.h", "csrc/cuda/convert.cu"

# name, file, what stands there once, what is put there, the tests that must see it
# fmt: off
_KERNELS = (
    # sm_90a, row kernels: the ring between TMA and wgmma.
    ("rows_release_early", _CONSUMER, "      ptx::wgmma_wait<0>();\n      release(ring_.stage);", "      release(ring_.stage);\n      ptx::wgmma_wait<0>();"),
    ("rows_first_product_not_waited_for", _CONSUMER,
     "      ptx::wgmma_wait<0>();\n      release(ring_.stage);", "      release(ring_.stage);"),
    ("rows_x_not_kept", "csrc/cuda/hopper/kernels.cu", "  call.keep_rounded = bool(p.x_kept);\n", ""),
    ("rows_x_kept_a_step_off", _CONSUMER, "staging_.send(call_.rounded, step * kColumns);", "staging_.send(call_.rounded, (step ^ 1) * kColumns);"),
    ("rows_rounded_without_a_fence", _CONSUMER, "      ptx::fence_proxy_async();\n      staging_.next();", "      staging_.next();"),
    ("rows_no_wgmma_fence", _CONSUMER, "    ptx::wgmma_fence();\n#pragma unroll\n    for (int k = 0; k < 4; ++k) {",
     "#pragma unroll\n    for (int k = 0; k < 4; ++k) {"),
    ("rows_k_step_of_a_k_major_tile", _CONSUMER, "ptx::descriptor_k_major(weights) + 2 * k;", "ptx::descriptor_k_major(weights) + 4 * k;"),
    ("rows_k_step_of_an_mn_major_tile", _CONSUMER, "ptx::descriptor_mn_major(weights, kTileBytes) + 128 * k : ",
     "ptx::descriptor_mn_major(weights, kTileBytes) + 2 * k : "),
    ("rows_block_of_an_mn_major_tile", _CONSUMER, "kBackward ? ptx::descriptor_mn_major(weights, kTileBytes) + 128 * k : ",
     "kBackward ? ptx::descriptor_mn_major(weights, 1024) + 128 * k : "),
    ("rows_second_product_in_flight", _CONSUMER, "    ptx::wgmma_wait<0>();\n    ptx::wgmma_landed(o);", "    ptx::wgmma_landed(o);"),
    ("rows_input_released_before_read", _OUTPUT, "    if constexpr (kKeepsInput) release();", "    release();"),
    ("rows_z_released_before_read", _CONSUMER,
     "#pragma unroll\n      for (int j = 0; j < 4; ++j) ptx::ldmatrix_x4(z[j], block + fragment(lane_, j));\n      release(ring_.stage);",
     "      release(ring_.stage);\n#pragma unroll\n      for (int j = 0; j < 4; ++j) ptx::ldmatrix_x4(z[j], block + fragment(lane_, j));"),
    ("rows_b1_missing", _CONSUMER, "if (!kBackward && call_.b1) load_columns(b, call_.b1, 0, lane_);", ""),
    ("rows_bias_of_other_columns", _CONSUMER, "b[i / 4 * 2 + i % 4 / 2]", "b[i / 4 * 2 + i % 2]"),
    ("rows_row_scale_of_another_row", _CONSUMER, "h[i] *= row_scale_[i / 2 % 2];", "h[i] *= row_scale_[i % 2];"),
    ("rows_factor_of_another_row", _CONSUMER, "d[2 * q] = factor_[q % 2]", "d[2 * q] = factor_[q / 2]"),
    ("rows_residual_not_waited_for", _OUTPUT, "    ptx::cp_async_wait<0>();\n    __syncwarp();", ""),
    ("rows_stores_not_waited_for", _CONSUMER, "if (lane_ == 0) ptx::bulk_wait_read<0>();", ""),
    ("rows_no_proxy_fence", _STAGING, "    ptx::fence_proxy_async();\n", ""),
    ("rows_staging_overtaken", _STAGING, "bulk_wait_read<kTurns - 1>", "bulk_wait_read<kTurns>"),
    ("rows_staging_not_acquired", _OUTPUT, "    if (!residual_staged()) staging_.acquire();", ""),
    ("rows_staging_swizzle", _STAGING, "(chunk ^ (row & 7)) << 4", "(chunk ^ (row & 3)) << 4"),
    ("rows_residual_of_another_row", _STAGING, "return addresses_[kWarpRows + row];", "return addresses_[kWarpRows + (row ^ 1)];"),
    ("rows_beyond_the_last_written", _STAGING, "if (inside(row)) *reinterpret_cast<uint4*>", "*reinterpret_cast<uint4*>"),
    ("rows_too_few_bytes_expected", _PRODUCER, "take(call_.grid.consumers * Plan::kInputBytes + Plan::kWeightBytes);",
     "take(call_.grid.consumers * Plan::kInputBytes);"),
    ("rows_multicast_to_itself", _PRODUCER, "full, x, y, 3);", "full, x, y, 1 << rank_of(call_));"),
    ("rows_halves_of_the_weights", _PRODUCER, "return call_.grid.cluster == 2 ? rank_of(call_) : 0;", "return 0;"),
    ("rows_producer_does_not_wait", _PRODUCER, "    ring_.wait_empty();\n", ""),
    ("rows_skip_tile_not_fetched", _PRODUCER, "i >= kept_of(call_, item);", "i > kept_of(call_, item);"),
    ("rows_cut_block_reads_the_ring", _RING, "item.count == call.steps ? call.kept : 0", "call.kept"),
    ("rows_wrong_phase", _RING, "ptx::mbarrier_wait(empty(stage), phase ^ 1);", "ptx::mbarrier_wait(empty(stage), phase);"),
    ("rows_phase_kept", _RING, "      stage = 0;\n      phase ^= 1;", "      stage = 0;"),
    ("rows_kept_columns_in_wrong_order", _RING, "(kBetween + i) % Plan::kStages", "i % Plan::kStages"),
    ("rows_parts_of_the_columns", _RING, "end = (part + 1) * call.steps / parts;", "end = (part + 1) * (call.steps / parts);"),
    ("rows_cut_block_of_other_rows", _RING, "std::min(index, grid.whole) + beyond", "std::max(index, grid.whole) + beyond"),
    ("rows_cta_leaves_early", _ROWS, "  if (cluster > 1) ptx::cluster_sync();\n#endif", "#endif"),
    ("rows_released_by_one_cta", _ROWS, "4 * consumers * cluster", "4 * consumers"),
    ("rows_no_barrier_fence", _ROWS, "    ptx::fence_mbarrier_init();\n", ""),
    ("rows_b2_of_the_block_before", _OUTPUT, "if constexpr (kAsksAhead) ask(next);", "if constexpr (kAsksAhead) ask(column);"),
    ("rows_b2_of_another_column", _OUTPUT, "{bias_[2 * j], bias_[2 * j], bias_[2 * j + 1], bias_[2 * j + 1]}", "{bias_[2 * j], bias_[2 * j + 1], bias_[2 * j], bias_[2 * j + 1]}"),
    ("rows_scale_of_another_column", _OUTPUT, "const float2 w = c[2 * j + q / 2];", "const float2 w = c[2 * j + q % 2];"),
    ("rows_last_row_of_fp32", _OUTPUT, "      if (!staging_.inside(row)) continue;\n", ""),
    # sm_90a, the products over rows.
    ("columns_release_early", _COLUMNS, "    ptx::wgmma_wait<1>();\n    ring.release(last);", "    ring.release(last);\n    ptx::wgmma_wait<1>();"),
    ("columns_last_not_waited_for", _COLUMNS, "  ptx::wgmma_wait<0>();\n", ""),
    ("columns_descriptor", _COLUMNS, "ptx::descriptor_mn_major(b, Layout::kBoxBytes)", "ptx::descriptor_mn_major(b, 1024)"),
    ("columns_not_transposed", _COLUMNS, "ptx::Wgmma<kWidth, T, true, true>", "ptx::Wgmma<kWidth, T, false, true>"),
    ("columns_first_step_added", _COLUMNS, "!(first && k == 0)", "1"),
    ("columns_swizzle_of_the_sums", _COLUMNS, "column % 64 / 8 ^ row % 8", "column % 64 / 8 ^ row % 4"),
    ("columns_factor_missing", _COLUMNS, "const float factor = factors ? factors[ring.stage * kStepRows + row] : 1.f;", "const float factor = 1.f;"),
    ("columns_summing_warps_not_counted", _COLUMNS, " + kSumThreads / 32 * summing", ""),
    ("columns_cta_leaves_early", _COLUMNS, "  if constexpr (Layout::kCluster > 1) ptx::cluster_sync();\n#endif", "#endif"),
    ("columns_sums_do_not_wait", _COLUMNS, "    ptx::mbarrier_wait(ring.full(), ring.phase);\n#pragma unroll\n    for (int turn", "#pragma unroll\n    for (int turn"),
    ("columns_ranges_overlap", _LAYOUT, "(out.split + 1) / call.splits);", "(out.split + 1) / call.splits) + (out.split + 1 < call.splits);"),
    ("sum_without_the_last_range", _SUM, "if (split + i >= sum.splits) break;", "if (split + i >= sum.splits - 1) break;"),
    ("sum_dw2_not_turned", _SUM, "const float value = tile[x][row];", "const float value = tile[row][x];"),
    ("sum_no_barrier", _SUM, "  __syncthreads();\n  const int x = threadIdx.x % kTile,", "  const int x = threadIdx.x % kTile,"),
    # Conversions: the second of a launch, and the factor of rows that go by vectors.
    ("convert_first_of_a_launch", _CONVERT, "jobs.job[blockIdx.y]", "jobs.job[0]"),
    ("convert_vectors_without_factor", _CONVERT, "v[k] *= factor;", "v[k] *= 1.f;"),
    # Three consumers: that they run at all, and by which activation.
    ("rows_three_consumers_other_gelu", _CONSUMER, "pass_all.template operator()<Activation::kGelu>();", "pass_all.template operator()<Activation::kGeluTanh>();"),
    ("sum_db2_without_factor", _SUM, "sum.db2.dtype, d, sum.factor(d) * total", "sum.db2.dtype, d, total"),
    # sm_80 and up.
    ("ampere_copies_not_waited_for", _AMPERE_RING, "ptx::cp_async_wait<kStages - 2>();", "ptx::cp_async_wait<kStages - 1>();"),
    ("ampere_no_barrier", _AMPERE_RING, "    __syncthreads();\n    fill<kStep>();", "    fill<kStep>();"),
    ("ampere_staging_not_synchronised", _TILE, "      __syncwarp();\n#pragma unroll\n      for (int j = 0; j < kGroup / 8; ++j) {\n        const uint32_t to = float",
     "#pragma unroll\n      for (int j = 0; j < kGroup / 8; ++j) {\n        const uint32_t to = float"),
    ("ampere_residual_of_another_row", _TILE, "load_piece(row.residual,", "load_piece(row_of_half(0).residual,"),
    ("ampere_b2_missing", _TILE, "          unpack(addends.bias, call.b2.dtype, other);\n          add(values, other);\n", ""),
    ("ampere_last_rows_written", _TILE, "if (!row.inside || column >= call.D) continue;\n      float other", "if (column >= call.D) continue;\n      float other"),
    ("ampere_parts_overlap", _AMPERE_RING, "first_group = static_cast<int>(blockIdx.y) * part;", "first_group = static_cast<int>(blockIdx.y) * (part - 1);"),
    ("ampere_fragment_columns", _TILES, "column / kChunk + lane / 16));", "column / kChunk + lane / 8 % 2));"),
    ("ampere_b1_of_another_column", _FORWARD, "(i % 2 ? bias.y : bias.x)", "(i % 2 ? bias.x : bias.y)"),
    ("ampere_factor_of_another_row", _BACKWARD, "* factor[i % 4 / 2];", "* factor[i % 2];"),
    ("ampere_range_one_short", _AMPERE_COLUMNS, "to = from + call.range;", "to = from + call.range - 1;"),
    ("ampere_sums_without_row_scale", _AMPERE_COLUMNS, "sum.x = fmaf(ptx::low<T>(both), scale, sum.x);", "sum.x = fmaf(ptx::low<T>(both), 1.f, sum.x);"),
    # Products in tiles.
    ("tiles_copies_not_waited_for", _PRODUCT, "ptx::cp_async_wait<kStages - 2>();", "ptx::cp_async_wait<kStages - 1>();"),
    ("tiles_slot_filled_too_early", _PRODUCT, "      __syncthreads();\n      fill_a(step + kStages - 1, free);",
     "      fill_a(step + kStages - 1, free);\n      __syncthreads();"),
    ("tiles_last_copies_in_the_sums", _PRODUCT, "    ptx::cp_async_wait<0>();\n    __syncthreads();", "    ptx::cp_async_wait<0>();"),
    ("tiles_one_group_left_out", _PRODUCT, "g < Tiling::kGroups; ++g", "g < Tiling::kGroups - 1; ++g"),
    ("tiles_b_filled_once", _PRODUCT, "++step) fill_b(step, step);", "++step) fill_b(0, 0);"),
    ("tiles_elements_of_another_turn", _PRODUCT, "elements[i] = epilogue.elements(m + further, n);", "elements[i] = epilogue.elements(m, n);"),
    ("tiles_last_rows_written", _PRODUCT, "if (row + further >= rows) break;", "if (rows == 0) break;"),
    ("tiles_groups_read_the_same_depth", _MULTIPLY_ADD, "Tiling::kThreadsN, k + group() * kFour);", "Tiling::kThreadsN, k);"),
    ("tiles_warps_read_the_same_depth", _TENSOR_CORES, "const int depth = k + group() * 16;", "const int depth = k;"),
    ("tiles_fragment_of_a_along", _TENSOR_CORES, "A::kPitch + depth + lane() / 16 * 8", "A::kPitch + depth + lane() / 8 % 2 * 8"),
    ("tiles_fragment_of_a_across", _TENSOR_CORES, "A::kPitch + m + lane() / 8 % 2 * 8", "A::kPitch + m + lane() / 16 * 8"),
    ("tiles_fragment_of_b_along", _TENSOR_CORES, "B::kPitch + depth + lane() / 8 % 2 * 8", "B::kPitch + depth + lane() / 16 * 8"),
    ("tiles_fragment_of_b_across", _TENSOR_CORES, "B::kPitch + n + lane() / 16 * 8", "B::kPitch + n + lane() / 8 % 2 * 8"),
    ("tiles_sums_of_another_row", _TENSOR_CORES, "to + (16 * i + 8) * pitch + 8 * j, sum[2], sum[3]", "to + (16 * i + 8) * pitch + 8 * j, sum[3], sum[2]"),
    ("tiles_beyond_the_depth", _OPERANDS, "const bool within = depth + place_ < end;", "const bool within = true;"),
    ("tiles_range_reads_the_next", _OPERANDS, "static_cast<int>(std::min<int64_t>(end - depth, kDepth)) - line_", "kDepth - line_"),
    ("tiles_strided_range_reads_the_next", _OPERANDS, "inside = from_[0] && line < end;", "inside = from_[0] && line <= end;"),
    ("tiles_one_stride_for_all_rows", _OPERANDS, "return rows.dims <= 1 ?", "return rows.dims <= 2 ?"),
    ("tiles_scale_of_another_column", _EPILOGUES, "v[i] *= of_row * factor[i];", "v[i] *= of_row * factor[0];"),
    ("tiles_residual_missing", _EPILOGUES, "    elements.residual.add_to(v, residual.dtype);\n", ""),
    ("tiles_h_without_row_scale", _EPILOGUES, "v[i] *= elements.of_row;", "v[i] *= 1.f;"),
    ("tiles_recompute_goes_on", _TILES_ROWS, "(hidden, output, bool(p.y), device)", "(hidden, output, true, device)"),
    ("tiles_x_as_it_came", _TILES_ROWS, "multiplied(p.x, between.x, p)", "multiplied(p.x, nullptr, p)"),
    ("tiles_dy_as_it_came", _KERNELS_CPP, "if (between.dy) p.dy = contiguous_rows", "if (by_k1) p.dy = contiguous_rows"),
    ("tiles_x_not_kept", _KERNELS_CPP, "preparation.beside(p.x, p.M, p.D, p.dtype, p.x_kept.data);", "preparation.beside(p.x, p.M, p.D, p.dtype);"),
    ("tiles_sums_without_row_scale", _TILES_COLUMNS, "some[j] = fmaf(factor, four[j], some[j]);", "some[j] += four[j];"),
    ("tiles_sums_of_the_next_range", _TILES_COLUMNS, "        if (m + i * kDown >= rows.end) break;\n", ""),
    ("tiles_sums_not_synchronised", _TILES_COLUMNS, "  __syncthreads();\n  const int column", "  const int column"),
    ("tiles_dw2_without_alpha", _TILES_COLUMNS, "second.product = {p.dw2, 0, p.alpha};", "second.product = {p.dw2, 0, 1.f};"),
    ("tiles_dw2_not_turned", _TILES_COLUMNS, "make_part(whole ? dy : h, whole ? h : dy, dy,", "make_part(h, dy, dy,"),
    ("tiles_scale_forgotten", _TILES_COLUMNS, "call.M <= kFewRows && !call.scale", "call.M <= kFewRows"),
    ("tiles_ranges_overlap", _TILES_COLUMNS, "end = begin + call.range;", "end = begin + call.range + 1;"),
    ("gelu_of_fp32", _ACTIVATION, "0.5f * erfcf(z * -0.7071067811865475f)", "0.5f * erfcf(z * -0.70710f)"),
    # All of them.
    ("activation_coefficient", _ACTIVATION, "-0.254989764f", "-0.25f"),
    ("activation_slope", _ACTIVATION, "dh *= fmaf(z, normal_density<T>(z), law);", "dh *= law;"),
    ("activation_coefficient_of_bf16", _ACTIVATION, "0.1070991307f", "0.11f"),
    ("rows_every_activation_is_gelu", _CONSUMER, "through_activation(z, hidden, item, [](auto&... values) { pass<A>(values...); });",
     "through_activation(z, hidden, item, [](auto&... values) { pass<Activation::kGelu>(values...); });"),
    ("activation_quick_gelu", _ACTIVATION, "1.702f", "1.7f"),
)
# Seen by the tests of that family alone.
_OF_SM_80 = (
    ("ampere_x_kept_by_other_parts", _FORWARD, "call.rounded && tile.is_first_part()", "call.rounded && !tile.is_first_part()"),
    ("ampere_padding_of_hidden", _FORWARD, "own < call.H ? sums", "true ? sums"),
)
_OF_THE_EMULATOR = (
    ("emulator_swizzle", "tests/emulator/tma.h", "{0, 7, 3, 1}", "{0, 7, 1, 1}"),
    ("emulator_no_poison", "tests/emulator/wgmma.h", "  if (cfg.async == EAGER) return;\n  std::fill_n", "  return;\n  std::fill_n"),
    ("emulator_proxy_fence_of_others", "tests/emulator/shared_memory.h", "++fences_[thread];", "for (uint32_t& fences : fences_) ++fences;"),
    ("emulator_multicast_bytes", "tests/emulator/tma.h", "map_to_rank(barrier, rank), x, y);", "barrier, x, y);"),
    ("emulator_transposed_operand", "tests/emulator/wgmma.h", "(TB ? b[k][n + i] : b[k + i][n])", "b[k + i][n]"),
    ("emulator_stale_fault", "tests/emulator/launch.h", "std::exchange(thread_error, {})", "thread_error"),
)
# fmt: on

ROWS = tuple(
    (*row, tests)
    for rows, tests in ((_KERNELS, _ALL), (_OF_SM_80, _FILES), (_OF_THE_EMULATOR, _EMULATOR))
    for row in rows
)
