#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace aim_fast {

extern const Kernels kernels_portable;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avx512, kernels_avx512_bf16, kernels_amx;
bool has_amx();  // and may use it
#endif

namespace {

#if defined(__x86_64__)
// Conversion of half floats; Clang 14 has no name for it.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

struct Available {
  const Kernels* sets[5];
  const char* names[5];
  int count = 0;

  void add(const Kernels& set, bool runs) {
    if (!runs) return;
    sets[count] = &set;
    names[count++] = set.name;
  }

  Available() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16"), amx = bf16 && has_amx();
#if defined(AIM_FAST_EMULATED)
    avx512 = bf16 = amx = avx2;
#endif
    add(kernels_amx, amx);
    add(kernels_avx512_bf16, bf16);
    add(kernels_avx512, avx512);
    add(kernels_avx2, avx2);
#endif
    add(kernels_portable, true);
  }
};

const Available& available() {
  static const Available sets;
  return sets;
}

const Kernels* find(const char* name) {
  std::string all;
  for (int i = 0; i < available().count; ++i) {
    if (std::strcmp(available().names[i], name) == 0) return available().sets[i];
    all += std::string(i ? ", " : "") + available().names[i];
  }
  throw std::invalid_argument(std::string("aim_fast: CPU instruction set is '") + name +
                              "'; expected one that this processor runs: " + all +
                              "; unset AIM_FAST_CPU_ISA for the best one");
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> set = [] {
    const char* name = std::getenv("AIM_FAST_CPU_ISA");
    return name && *name ? find(name) : available().sets[0];
  }();
  return set;
}

}  // namespace

const Kernels& kernels() { return *current(); }

void set_kernels(const char* name) { current() = find(name); }

int available_kernels(const char* const** names) {
  *names = available().names;
  return available().count;
}

}  // namespace aim_fast
