// Launches a kernel: on the GPU, or under emulation.
#pragma once

#include "cuda/ptx.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include <exception>
#endif

namespace aim_fast::cuda {

struct Grid {
  dim3 blocks, threads;
  int cluster = 1;    // blocks in x that form a cluster
  size_t shared = 0;  // bytes of dynamic shared memory
  // Begins as soon as the launch before it allows, which has to be one of this library's in the same call; the kernel
  // calls wait_for_launch_before ahead of the first access to what that one, or an early one before it, writes or
  // reads. What came before the last launch that was none has ended.
  bool early = false;
};

// Returns a cudaError_t.
template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), const Grid& grid, void* stream, Arguments... arguments) {
#ifdef __CUDACC__
  if (grid.shared > 48 << 10) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(grid.shared));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared;
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute attributes[2];
  config.attrs = attributes;
  if (grid.cluster > 1) {
    cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(grid.cluster), 1, 1};
  }
  if (grid.early) {
    cudaLaunchAttribute& early = attributes[config.numAttrs++];
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
#else
  (void)stream;
  emu::launch(grid.blocks, grid.threads, dim3(grid.cluster), grid.shared, [=] { kernel(arguments...); });
  return 0;  // a fault is a C++ exception, which the binding hands to Python
#endif
}

}  // namespace aim_fast::cuda
