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
constexpr const char* kFamilies[] = {"tiles", "ampere", "hopper"};  // in the order of Family
constexpr Family kBestFirst[] = {Family::kHopper, Family::kAmpere, Family::kTiles};

struct Choice {
  int family = kByRule, plan = kByRule;
};
std::atomic<Choice> of_process{Choice{}};

std::string name_of(int family, int plan) {
  if (family == kByRule) return "";
  return plan == kByRule ? kFamilies[family] : std::string(kFamilies[family]) + "/" + std::to_string(plan);
}

Choice parse(const std::string& choice) {
  if (choice.empty()) return {};
  for (int family = 0; family < static_cast<int>(std::size(kFamilies)); ++family) {
    const std::string name = kFamilies[family];
    if (choice == name) return {family, kByRule};
    if (choice.rfind(name + "/", 0) != 0) continue;
    const std::string number = choice.substr(name.size() + 1);
    char* end = nullptr;
    const long plan = std::strtol(number.c_str(), &end, 10);
    if (number.empty() || *end != 0 || plan < 0 || plan > 99) break;
    return {family, static_cast<int>(plan)};
  }
  throw std::invalid_argument(
      "adapter: the CUDA kernels are chosen by '" + choice +
      "'; expected '', 'tiles', 'ampere' or 'hopper', or one of them with '/' and the number of a plan");
}

// How many plans a family has for a call on a device whose best family is given.
int count_plans(const Problem& p, bool backward, Family family, const Device& device) {
  if (static_cast<int>(family) > static_cast<int>(device.family)) return 0;
  const Device there = {family, device.sms, device.stream, device.early};
  const Kernels* kernels = kernels_of(family);
  return kernels ? kernels->plans(p, there, backward) : 0;
}

#ifndef __CUDACC__
int emulated_sms = 4;
#endif

}  // namespace

bool choose_plan(const Problem& p, bool backward, const std::string& choice, Device& device) {
  const Choice named = choice.empty() ? of_process.load() : parse(choice);
  for (const Family family : kBestFirst) {
    if (named.family != kByRule && named.family != static_cast<int>(family)) continue;
    const int count = count_plans(p, backward, family, device);
    if (count == 0) continue;
    device.family = family;
    device.plan = named.plan < count ? named.plan : kByRule;
    return true;
  }
  return false;
}

std::string choose_kernels(const std::string& choice) {
  const Choice before = of_process.exchange(parse(choice));
  return name_of(before.family, before.plan);
}

std::string plans(const Problem& p, bool backward, Device device) {
  std::string all;
  for (const Family family : kBestFirst) {
    for (int plan = 0, count = count_plans(p, backward, family, device); plan < count; ++plan) {
      all.append(all.empty() ? "" : ",").append(name_of(static_cast<int>(family), plan));
    }
  }
  return all;
}

#ifdef __CUDACC__

bool find_device(int index, void* stream, Device& device) {
  int major = 0, minor = 0, sms = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index) != cudaSuccess) return false;
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
  cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, index);
  // Code for a lower architecture runs too: beside that of each in the list there is PTX of the lowest.
  if (10 * major + minor < std::atoi(kArchs.data())) return false;
  // Where code for it runs: what PTX of a lower architecture gives knows nothing of early launches.
  const bool hopper = kHasHopper && major == 9 && minor == 0;
  device = {hopper ? Family::kHopper : Family::kAmpere, sms, stream, hopper};
  return true;
}

void emulate(int, int64_t, int) {}

#else

bool find_device(int, void* stream, Device& device) {
  device = {Family::kHopper, emulated_sms, stream, true};
  return true;
}

void emulate(int order, int64_t seed, int sms) {
  emu::cfg.async = order;
  emu::cfg.seed = static_cast<uint32_t>(seed);
  emulated_sms = sms;
}

#endif

}  // namespace aim_fast::cuda
