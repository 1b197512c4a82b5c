// How the probes are called from Python: a C function that returns null, or what went wrong.
#pragma once

#include <exception>
#include <string>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

namespace aim_fast::probe {

template <class Run>
const char* told(Run&& run) {
  static std::string error;
  try {
    int code = run();
#ifdef __CUDACC__
    if (!code) code = cudaDeviceSynchronize();
#endif
    if (!code) return nullptr;
    error = "error " + std::to_string(code);
  } catch (const std::exception& thrown) {
    error = thrown.what();
  }
  return error.c_str();
}

}  // namespace aim_fast::probe

#define AIM_PROBE extern "C" __attribute__((visibility("default"))) const char*
