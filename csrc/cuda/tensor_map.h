// Tensor maps: what TMA needs to know of a matrix in global memory.
#pragma once

#include "common/params.h"
#include "cuda/ptx.h"

#ifdef __CUDACC__
#include <cudaTypedefs.h>
#include <cuda_runtime.h>
#endif

namespace aim_fast::cuda {

// A row-major matrix [rows, columns] in boxes of box_rows by 128 bytes, laid down with the 128-byte swizzle.
// row_bytes: from one row to the next, a multiple of 16. Returns a cudaError_t.
inline int make_map(ptx::TensorMap* map, const void* data, Dtype dtype, int64_t rows, int64_t columns,
                    int64_t row_bytes, int box_rows) {
  const uint32_t box_columns = static_cast<uint32_t>(128 / element_size(dtype));
#ifdef __CUDACC__
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
    return error == cudaSuccess ? reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found) : nullptr;
  }();
  if (!encode) return cudaErrorNotSupported;
  const CUtensorMapDataType type = dtype == Dtype::kFloat32    ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                                   : dtype == Dtype::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                               : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(row_bytes)};
  const cuuint32_t box[2] = {box_columns, static_cast<cuuint32_t>(box_rows)}, steps[2] = {1, 1};
  const auto succeeds = [&] {
    return encode(map, type, 2, const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                  CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
  };
  if (succeeds()) return cudaSuccess;
  // The driver's function needs a context, which a thread of autograd has not before its first call of the runtime.
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaSetDevice(device);
  return error != cudaSuccess ? error : succeeds() ? cudaSuccess : cudaErrorInvalidValue;
#else
  *map = ptx::TensorMap{};
  map->base = static_cast<uint8_t*>(const_cast<void*>(data));
  map->dim[0] = columns;
  map->dim[1] = rows;
  map->stride_bytes = row_bytes;
  map->box[0] = box_columns;
  map->box[1] = box_rows;
  map->esz = static_cast<uint32_t>(element_size(dtype));
  map->swz = 1;
  return 0;
#endif
}

}  // namespace aim_fast::cuda
