// The tile registers of AMX, on any x86 processor with AVX2: twins of the instructions in csrc/cpu/matrix.h, by
// Intel's Software Developer's Manual. A thread uses tiles between configure and release; one that does so at
// another time ends the process, as the processor's exception would.
#pragma once

#include <cstdlib>

#include "avx512_bf16.h"

namespace emulated_amx {

struct Registers {
  bool configured = false;
  uint32_t tile[8][16][16];
};
inline thread_local Registers registers;

template <class Config>
void configure(const Config& config) {
  static_assert(sizeof(Config) == 64);
  uint8_t bytes[64];
  __builtin_memcpy(bytes, &config, 64);
  for (int i = 0; i < 8; ++i) {
    if (bytes[0] != 1 || bytes[16 + 2 * i] != 64 || bytes[48 + i] != 16) std::abort();  // no other shape is emulated
  }
  registers.configured = true;
  __builtin_memset(registers.tile, 0, sizeof registers.tile);
}
inline void release() { registers.configured = false; }

inline auto& tile(int i) {
  if (!registers.configured) std::abort();
  return registers.tile[i];
}

template <int kTile>
void clear() {
  __builtin_memset(tile(kTile), 0, 1024);
}
template <int kTile>
void load(const void* from, int64_t stride) {
  for (int r = 0; r < 16; ++r) __builtin_memcpy(tile(kTile)[r], static_cast<const uint32_t*>(from) + r * stride, 64);
}
template <int kTile>
void store(void* to, int64_t stride) {
  for (int r = 0; r < 16; ++r) __builtin_memcpy(static_cast<uint32_t*>(to) + r * stride, tile(kTile)[r], 64);
}

// sum [16, 16] += a b: the products of a pair's halves have sums of their own. Numbers under 2^-126 count as zero, sums
// only in the end.
template <int kSum, int kA, int kB>
void multiply_add() {
  auto &sum = tile(kSum), &a = tile(kA), &b = tile(kB);
  const auto row = [](const uint32_t* from) {
    Words16 v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
  };
  Floats16 upper[16], lower[16];
  for (int k = 0; k < 16; ++k) upper[k] = upper_halves(row(b[k])), lower[k] = lower_halves(row(b[k]));
  for (int m = 0; m < 16; ++m) {
    const Floats16 of_upper = upper_halves(row(a[m])), of_lower = lower_halves(row(a[m]));
    Floats16 odd{}, even{};
    for (int k = 0; k < 16; ++k) odd = of_upper[k] * upper[k] + odd, even = of_lower[k] * lower[k] + even;
    const Floats16 all = flushed(flushed((Floats16)row(sum[m])) + flushed(odd + even));
    __builtin_memcpy(sum[m], &all, sizeof all);
  }
}

}  // namespace emulated_amx
