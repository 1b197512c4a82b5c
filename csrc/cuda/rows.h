// Rows of any strides as a kernel walks them: params.h's Rows with sizes in 32 bits and strides in bytes.
#pragma once

#include "common/params.h"
#include "cuda/ptx.h"

namespace aim_fast::cuda {

struct DeviceRows {
  char* data;
  int64_t stride[kMaxLeadingDims];  // in bytes, the innermost dimension first
  uint32_t size[kMaxLeadingDims];
  int dims;  // 0: one row
  Dtype dtype;

  explicit constexpr operator bool() const { return data != nullptr; }

  AIM_DEVICE char* row(uint32_t m) const {
    int64_t offset = 0;
#pragma unroll
    for (int i = 0; i < kMaxLeadingDims - 1; ++i) {
      if (i + 1 >= dims) break;
      const uint32_t outer = m / size[i];
      offset += (m - outer * size[i]) * stride[i];
      m = outer;
    }
    return data + (dims > 0 ? offset + m * stride[dims - 1] : 0);
  }
};

inline DeviceRows device_rows(const Rows& rows) {
  DeviceRows out{rows.data, {}, {}, rows.ndim, rows.dtype};
  for (int i = 0; i < rows.ndim; ++i) {
    const int from = rows.ndim - 1 - i;
    out.size[i] = static_cast<uint32_t>(rows.size[from]);
    out.stride[i] = rows.stride[from] * element_size(rows.dtype);
  }
  return out;
}

}  // namespace aim_fast::cuda
