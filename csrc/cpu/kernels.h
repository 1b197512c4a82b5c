// What every instruction set exports, and the choice among them.
#pragma once

#include "../common/params.h"

namespace aim_fast {

struct Kernels {
  const char* name;
  void (*forward)(const ForwardParams&);
  void (*backward)(const BackwardParams&);
  // The weights as the forward's products read them, good for calls of the same D, H and compute dtype.
  int64_t (*packed_bytes)(const ForwardParams&);
  void (*pack)(const ForwardParams&, char* out);
  // A loop of independent multiply-adds in registers: FLOP done. The dtype's own instruction, or fp32's.
  int64_t (*peak)(Dtype, int64_t rounds);
};

// The set in use: the best this processor runs, or the lower one that AIM_FAST_CPU_ISA names at first use.
// Throws std::invalid_argument for a name that is unknown or not to be had here.
const Kernels& kernels();
void set_kernels(const char* name);

// Names of all sets that this processor runs, best first; returns how many.
int available_kernels(const char* const** names);

}  // namespace aim_fast
