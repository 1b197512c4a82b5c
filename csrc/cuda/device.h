// What runs a call: the device, whose kernels, and which of their plans.
#pragma once

#include <string>
#include <string_view>

#include "cuda/kernels.h"

namespace aim_fast::cuda {

// What the kernels were compiled for, the lowest first, as setup.py sets it.
#ifdef AIM_FAST_EMULATED
#define AIM_FAST_CUDA_ARCHS "emulated"
#endif
constexpr std::string_view kArchs = AIM_FAST_CUDA_ARCHS;
// Emulated, the kernels run on the CPU.
constexpr bool kEmulated = kArchs == "emulated";
constexpr bool kHasHopper = kEmulated || kArchs.find("90a") != std::string_view::npos;

// The device of that index, with the best family of kernels that runs there; false where none does.
bool find_device(int index, void* stream, Device& device);

// Sets the family and the plan of a call. `choice` is "" for the rule: the best family that has plans for its D, H and
// dtype; else "tiles", "ampere" or "hopper", with "/PLAN" if wanted (a plan that it has not is left to its rule).
// Returns false where the kernels do not take the call; throws std::invalid_argument for any other choice.
bool choose_plan(const Problem& p, bool backward, const std::string& choice, Device& device);

// For tests: what "" stands for in every call of this process. Returns the choice before; throws as `choose_plan`.
std::string choose_kernels(const std::string& choice);

// Every choice that a call has on this device, the best family first and with commas between: "hopper/0,ampere/0".
std::string plans(const Problem& p, bool backward, Device device);

// Emulation only: the order in which asynchronous work completes (0 at once, 1 as late as possible, 2 at random) with
// the seed of the latter, and the multiprocessors of the GPU that is imitated.
void emulate(int order, int64_t seed, int sms);

}  // namespace aim_fast::cuda
