// A kernel's call as the steps that the host runs.
#pragma once

#include "../common/params.h"
#include "vec.h"

namespace aim_fast::AIM_FAST_ISA {

// Runs `count` steps of a call, which has tasks(step) and task(step, i).
template <class Call>
void run_steps(const Problem& p, int64_t count, Call* call) {
  const Steps steps{
      count,
      [](const void* context, int64_t step) { return static_cast<const Call*>(context)->tasks(step); },
      [](void* context, int64_t step, int64_t i) { static_cast<Call*>(context)->task(step, i); },
      call,
  };
  p.run_steps(steps);
}

}  // namespace aim_fast::AIM_FAST_ISA
