// Brings rows into the form that a kernel reads: contiguous, aligned, in another dtype, times a factor a row.
#pragma once

#include "common/params.h"

namespace aim_fast::cuda {

struct Conversion {
  Rows from;
  Array to;  // [rows, columns], contiguous
  int64_t rows, columns;
  Array factor;  // [rows]; absent: 1
};

// Returns a cudaError_t.
int convert(const Conversion& conversion, void* stream);

}  // namespace aim_fast::cuda
