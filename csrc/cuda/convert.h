// Brings rows into the form that a kernel reads: contiguous, aligned, in another dtype, times a factor a row.
#pragma once

#include <vector>

#include "common/params.h"

namespace aim_fast::cuda {

struct Conversion {
  Rows from;
  Array to;  // [rows, columns], contiguous, aligned to 16 bytes
  int64_t rows, columns;
  Array factor;  // [rows]; absent: 1
};

// All of them, up to four a launch. Returns a cudaError_t.
int convert(const std::vector<Conversion>& conversions, void* stream);

}  // namespace aim_fast::cuda
