// What runs a call: the device, whose kernels, and for tests which of their plans.
#pragma once

#include <string>

#include "cuda/kernels.h"

namespace aim_fast::cuda {

// The device of that index with the current choice of kernels. `family` is not set where no kernels are for it.
bool find_device(int index, void* stream, Device& device);

// For tests and measurements: "" for the rule, else "ampere" or "hopper", with "/PLAN" if wanted. Returns the choice
// before; throws std::invalid_argument.
std::string choose_kernels(const std::string& choice);

// Whether kernels were compiled for real GPUs; else they are emulated on the CPU.
constexpr bool kEmulated =
#ifdef AIM_FAST_EMULATED
    true;
#else
    false;
#endif

// Emulation only: the order in which asynchronous work completes (0 at once, 1 as late as possible, 2 at random) with
// the seed of the latter, and the multiprocessors of the GPU that is imitated.
void emulate(int order, int64_t seed, int sms);

}  // namespace aim_fast::cuda
