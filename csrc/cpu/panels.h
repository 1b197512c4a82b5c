// Some hundred rows: threads share the columns, not the rows. When, and what both directions need for it.
//
// With blocks of rows every thread reads all packed weights, of which other threads' caches have what those packed.
// Here a thread packs a panel and multiplies all rows by it at once, and packs these rows for itself.
//
// Measured: Xeon (Emerald Rapids), D = 768, H = 192, shortest time beside blocks' shortest, two threads and one: fp32
// on AVX-512, forward, 64 rows 0.61 and 0.85, 197 rows 0.83 and 0.98, 256 rows 0.87 and 1.02, 394 rows 1.06 and 1.05;
// train step, 197 rows 0.87 and 0.89. bf16 on tiles, forward, 32 rows 0.72 and 0.86, 197 rows 0.74 and 0.97, 394 rows
// 0.93 and 1.03; train step, 197 rows 0.79 and 0.99.
#pragma once

#include "pack.h"
#include "scratch.h"

namespace aim_fast::AIM_FAST_ISA {

constexpr int64_t kMaxPanelRows = 256;
constexpr int64_t kMaxPanelBytes = 1280 << 10;  // of these rows in lines; measured with a second cache of 2 MiB

// Whether a call's rows are so few that it goes this way.
template <class Op>
bool by_panels(const Problem& p, int64_t M) {
  return M <= kMaxPanelRows && bytes_in_lines<Op>(M, p.D) <= kMaxPanelBytes;
}

// Whether its hidden panels keep the threads equally busy, within a fifth.
inline bool shared_evenly(const Problem& p) {
  const int64_t panels = ceil_div(p.H, kNR);
  return 5 * ceil_div(panels, p.threads) * p.threads <= 6 * panels;
}

// The columns of the hidden panels that are the i-th thread's.
struct Share {
  int64_t first, end;

  Share(const Problem& p, int64_t i) {
    const int64_t panels = ceil_div(p.H, kNR);
    first = i * panels / p.threads * kNR;
    end = least((i + 1) * panels / p.threads * kNR, p.H);
  }
};

// A thread's own room: for a panel of so many lines, for floats up to a whole panel, and for bytes of rows in lines.
template <class Op>
struct ThreadPanel {
  typename Op::Unit *panel, *lines;
  float* row;

  ThreadPanel(int64_t panel_lines, int64_t floats, int64_t line_bytes = 0) {
    Layout layout;
    const size_t row_at = layout.add(round_up(floats, kNR) * sizeof(float));
    const size_t panel_at = layout.add(panel_lines * kLine<Op> * kNR * sizeof(typename Op::Unit));
    const size_t lines_at = layout.add(line_bytes);
    char* base = scratch(Scratch::kBlock, layout.size());
    row = reinterpret_cast<float*>(base + row_at);
    panel = reinterpret_cast<typename Op::Unit*>(base + panel_at);
    lines = reinterpret_cast<typename Op::Unit*>(base + lines_at);
  }
};

}  // namespace aim_fast::AIM_FAST_ISA
