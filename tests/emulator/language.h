// What of the CUDA language a kernel uses besides PTX: built-in variables, __syncthreads, shuffles.
#pragma once

#include <vector_functions.h>

#include "barriers.h"

#undef __shared__
#undef __launch_bounds__
#undef __cluster_dims__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#ifndef __global__
#define __global__
#endif
#ifndef __forceinline__
#define __forceinline__ inline
#endif
#define __shared__ static  // CTAs run one after the other, unless they are of one cluster

#define threadIdx (emu::current->position)
#define blockIdx (emu::current->cta->position)
#define blockDim (emu::block_size)
#define gridDim (emu::grid_size)

inline void __syncthreads() { emu::sync_threads(); }
inline void __syncwarp(unsigned = ~0u) {
  emu::warp_collective("__syncwarp", nullptr, [](void**, unsigned) {});
}

namespace emu {

// Every lane gets the value of the lane that it names.
template <class T>
T shuffle(T value, unsigned from) {
  struct Exchange {
    T given, taken;
    unsigned from;
  } mine{value, value, from};
  warp_collective("a shuffle", &mine, [](void** lanes, unsigned count) {
    for (unsigned lane = 0; lane < count; ++lane) {
      Exchange& exchange = *static_cast<Exchange*>(lanes[lane]);
      if (exchange.from < count) exchange.taken = static_cast<Exchange*>(lanes[exchange.from])->given;
    }
  });
  return mine.taken;
}

}  // namespace emu

template <class T>
T __shfl_sync(unsigned, T value, int from) {
  return emu::shuffle(value, from % 32);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emu::shuffle(value, emu::current->lane() ^ mask);
}
template <class T>
T __shfl_down_sync(unsigned, T value, unsigned by) {
  return emu::shuffle(value, emu::current->lane() + by);
}
