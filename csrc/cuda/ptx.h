// Every PTX instruction the kernels use, behind one small function each: inline PTX on the GPU, and a host twin that
// runs it under emulation (tests/emulator), so that the same kernels run on a CPU for the tests.
//
// A comment names the instruction, which is also the title of its section in the PTX ISA, and what must hold.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __CUDACC__
#include <cuda.h>
#define AIM_DEVICE __device__ __forceinline__
#define AIM_NOINLINE static __device__ __noinline__
#define AIM_GRID_CONSTANT __grid_constant__
#define AIM_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) uint8_t name[]
#else
#include "emulator.h"
#define AIM_DEVICE inline
#define AIM_NOINLINE inline
#define AIM_GRID_CONSTANT
#define AIM_DYNAMIC_SHARED(name) uint8_t* name = emu::dynamic_shared()
#endif

namespace aim_fast::ptx {

using BFloat16 = __nv_bfloat16;
using Half = __half;
#ifdef __CUDACC__
using TensorMap = CUtensorMap;
#else
using TensorMap = emu::TensorMap;
#endif

// cvta.to.shared: the address of shared memory of this CTA that the instructions below take. Also one of the window
// shared::cluster, where it names this CTA.
AIM_DEVICE uint32_t shared_address(const void* p) {
#ifdef __CUDACC__
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
#else
  return emu::shared_address(p);
#endif
}

}  // namespace aim_fast::ptx

#include "cuda/ptx/barriers.h"
#include "cuda/ptx/matrices.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/tma.h"
#include "cuda/ptx/values.h"
#include "cuda/ptx/warpgroup.h"
