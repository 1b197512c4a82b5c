#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "cuda/device.h"
#include "cuda/ptx.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

namespace aim_fast::cuda {
namespace {

constexpr int kByRule = -1;
std::atomic<int> forced_family{kByRule}, forced_plan{kByRule};

constexpr const char* kFamilies[] = {"ampere", "hopper"};  // in the order of Family

std::string name_of(int family, int plan) {
  if (family == kByRule) return "";
  return plan == kByRule ? kFamilies[family] : std::string(kFamilies[family]) + "/" + std::to_string(plan);
}

#ifndef __CUDACC__
int emulated_sms = 4;
#endif

}  // namespace

std::string choose_kernels(const std::string& choice) {
  const std::string before = name_of(forced_family, forced_plan);
  if (choice.empty()) {
    forced_family = forced_plan = kByRule;
    return before;
  }
  for (int family = 0; family < 2; ++family) {
    const std::string name = kFamilies[family];
    if (choice != name && choice.rfind(name + "/", 0) != 0) continue;
    char* end = nullptr;
    const std::string number = choice.substr(std::min(choice.size(), name.size() + 1));
    const long plan = number.empty() ? kByRule : std::strtol(number.c_str(), &end, 10);
    if (!number.empty() && (*end != 0 || plan < 0 || plan > 99)) break;
    forced_family = family;
    forced_plan = static_cast<int>(plan);
    return before;
  }
  throw std::invalid_argument("cuda_choose_kernels: choice is '" + choice +
                              "'; expected '', 'ampere' or 'hopper', or one of them with '/' and the number of a plan");
}

#ifdef __CUDACC__

bool find_device(int index, void* stream, Device& device) {
  int major = 0, minor = 0, sms = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index) != cudaSuccess) return false;
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
  cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, index);
  const int forced = forced_family;
  const bool hopper = major == 9 && minor == 0;
  if (major < 8 || (forced == static_cast<int>(Family::kHopper) && !hopper)) return false;
  const Family family = forced != kByRule ? static_cast<Family>(forced) : hopper ? Family::kHopper : Family::kAmpere;
  device = {family, sms, stream, forced_plan};
  return true;
}

void emulate(int, int64_t, int) {}

#else

bool find_device(int, void* stream, Device& device) {
  const int forced = forced_family;
  device = {forced == kByRule ? Family::kHopper : static_cast<Family>(forced), emulated_sms, stream, forced_plan};
  return true;
}

void emulate(int order, int64_t seed, int sms) {
  emu::cfg.async = order;
  emu::cfg.seed = static_cast<uint32_t>(seed);
  emulated_sms = sms;
}

#endif

}  // namespace aim_fast::cuda
