// Small kernels that do one thing wrong, or right with `wrong` false: tests/test_emulator.py says what is to be told.
#include <cstring>

#include "misuse_barriers.h"
#include "misuse_copies.h"
#include "misuse_launches.h"
#include "misuse_wgmma.h"

namespace aim_fast::probe {
namespace {

struct Misuse {
  const char* name;
  void (*run)(bool wrong);
};
#define MISUSE(name) {#name, name}
constexpr Misuse kMisuses[] = {
    MISUSE(store_without_proxy_fence),
    MISUSE(wgmma_without_proxy_fence),
    MISUSE(copy_read_before_wait),
    MISUSE(copy_misaligned),
    MISUSE(copy_not_committed),
    MISUSE(load_misaligned),
    MISUSE(load_over_a_load),
    MISUSE(load_read_before_wait),
    MISUSE(load_past_the_end),
    MISUSE(load_of_fewer_bytes),
    MISUSE(load_of_more_bytes),
    MISUSE(load_in_flight_at_the_end),
    MISUSE(store_source_overwritten),
    MISUSE(store_not_waited_for),
    MISUSE(barrier_not_initialised),
    MISUSE(barrier_init_not_fenced),
    MISUSE(barrier_overwritten),
    MISUSE(barrier_too_many_arrivals),
    MISUSE(barrier_phase_gone_by),
    MISUSE(barrier_wrong_parity),
    MISUSE(named_barrier_of_two_counts),
    MISUSE(named_barrier_twice),
    MISUSE(named_barrier_of_no_whole_warps),
    MISUSE(named_barrier_that_nobody_else_reaches),
    MISUSE(warp_diverges),
    MISUSE(rows_misaligned),
    MISUSE(arrival_at_an_ended_cta),
    MISUSE(multicast_into_an_ended_cta),
    MISUSE(multicast_out_of_the_cluster),
    MISUSE(wgmma_not_fenced),
    MISUSE(wgmma_operand_in_flight),
    MISUSE(wgmma_operands_differ),
    MISUSE(wgmma_past_the_end),
    MISUSE(wgmma_of_three_warps),
    MISUSE(wgmma_in_flight_at_the_end),
    MISUSE(wgmma_left_by_one_warp),
    MISUSE(write_past_the_end),
    MISUSE(wild_pointer),
    MISUSE(stack_used_up),
    MISUSE(exception_in_a_kernel),
    MISUSE(too_many_threads),
    MISUSE(too_much_shared_memory),
    MISUSE(too_large_a_cluster),
    MISUSE(grid_of_no_whole_clusters),
};

}  // namespace
}  // namespace aim_fast::probe

using namespace aim_fast::probe;

AIM_PROBE aim_probe_misuse(const char* name, int wrong) {
  return told([&] {
    for (const Misuse& misuse : kMisuses) {
      if (strcmp(misuse.name, name) == 0) return misuse.run(wrong), 0;
    }
    return -1;
  });
}

// The names of all, with spaces between.
AIM_PROBE aim_probe_misuses() {
  static std::string names;
  for (const Misuse& misuse : kMisuses) names += names.empty() ? misuse.name : std::string(" ") + misuse.name;
  return names.c_str();
}

AIM_PROBE aim_probe_order(int order, unsigned seed) {
  emu::cfg.async = order;
  emu::cfg.seed = seed;
  return nullptr;
}
