// What the roles of a row kernel agree on: the ring of stages, the items of work, and the order of columns.
#pragma once

#include "cuda/hopper/rows_call.h"
#include "cuda/hopper/rows_plan.h"

namespace aim_fast::cuda::hopper {

// A thread's place in the ring; the phase flips with each turn.
template <class Plan>
struct Ring {
  uint32_t shared;  // where the CTA's shared memory begins
  int stage = 0;
  uint32_t phase = 0;

  AIM_DEVICE uint32_t input(int s) const { return shared + s * Plan::kStageBytes; }
  AIM_DEVICE uint32_t other(int s) const { return input(s) + Plan::kConsumers * Plan::kInputBytes; }
  AIM_DEVICE uint32_t full(int s) const { return shared + Plan::kFull + 8 * s; }
  AIM_DEVICE uint32_t empty(int s) const { return shared + Plan::kEmpty + 8 * s; }
  AIM_DEVICE void wait_full() const { ptx::mbarrier_wait(full(stage), phase); }
  AIM_DEVICE void wait_empty() const { ptx::mbarrier_wait(empty(stage), phase ^ 1); }
  AIM_DEVICE void advance() {
    if (++stage == Plan::kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

struct Item {
  uint32_t row;      // the CTA's first
  int first, count;  // steps of the second product
  bool leads;        // writes what does not depend on the part of the columns
};

// This CTA's place in its cluster, and the cluster's items. All said anew where they are needed: registers that live
// through both products are dear.
AIM_DEVICE uint32_t rank_of(const RowsCall& call) { return blockIdx.x & (call.grid.cluster - 1); }
AIM_DEVICE int first_item(const RowsCall& call) { return blockIdx.x >> (call.grid.cluster - 1); }
AIM_DEVICE int item_stride(const RowsCall& call) { return gridDim.x >> (call.grid.cluster - 1); }

AIM_DEVICE Item item_of(const RowsCall& call, int index) {
  const RowsGrid& grid = call.grid;
  const int parts = index < grid.whole ? 1 : grid.parts, beyond = std::max(index - grid.whole, 0) / parts;
  const int block = std::min(index, grid.whole) + beyond,
            part = index < grid.whole ? 0 : index - grid.whole - beyond * parts;
  const int first = part * call.steps / parts, end = (part + 1) * call.steps / parts;
  return {(block * grid.cluster + rank_of(call)) * grid.consumers * kGroupRows, first, call.second ? end - first : 0,
          part == 0};
}

AIM_DEVICE int kept_of(const RowsCall& call, const Item& item) { return item.count == call.steps ? call.kept : 0; }

// The column block of the second product's step i. The ring still has the input tiles of the first product's last
// steps, as the weights and z come beside them: the second product begins with those, so that the skip needs to fetch
// only the others again.
template <class Plan>
AIM_DEVICE int column_of(const RowsCall& call, const Item& item, int i) {
  constexpr int kBetween = Plan::kBackward ? Plan::kChunks : 0;  // the ring's places that z takes
  const int kept = kept_of(call, item);
  return i < kept ? call.steps - Plan::kStages + (kBetween + i) % Plan::kStages : item.first + i - kept;
}

}  // namespace aim_fast::cuda::hopper
