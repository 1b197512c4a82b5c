// Sums of a matrix' columns over ranges of its rows, where no product of the same matrix is formed: what the gradients
// of the biases alone need.
#pragma once

#include "common/params.h"

namespace aim_fast::cuda {

struct ColumnSums {
  const char* data;  // [rows, columns], 16-bit, aligned to 16 bytes
  Dtype dtype;
  int64_t rows, columns;  // columns: a multiple of 8
  int64_t row_bytes;      // from one row to the next, a multiple of 16
  Rows row_scale;         // [rows]; absent: 1
  float* out;             // [splits, columns], a range's sums `pitch` elements after those of the one before
  int64_t pitch;
  int splits;
};

// Returns a cudaError_t.
int column_sums(const ColumnSums& call, void* stream);

// Ranges that give every multiprocessor enough to read, for this many columns in all.
int column_sum_splits(int64_t rows, int64_t columns, int sms);

}  // namespace aim_fast::cuda
