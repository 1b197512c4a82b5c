// The operator's arguments as plain structs: what the binding fills in and every kernel reads. Knows no torch.
//
//     y = scale * row_scale * f(x) [+ x] [+ residual],  f(x) = act(x w1^T + b1) w2^T + b2
#pragma once

#include <cstdint>

namespace aim_fast {

enum class Dtype : int32_t { kFloat32, kBFloat16, kFloat16 };

constexpr int64_t element_size(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

// The order is that of ACTIVATIONS in aim_fast/reference.py.
enum class Activation : int32_t { kGelu, kGeluTanh, kQuickGelu, kRelu, kSilu, kTanh, kLeakyRelu, kIdentity };

constexpr int kMaxLeadingDims = 8;

// M rows of a tensor [..., D] with any strides on its leading dimensions and unit stride on the last.
struct Rows {
  char* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  int ndim = 0;  // leading dimensions, adjacent ones merged where their strides allow it
  int64_t size[kMaxLeadingDims] = {};
  int64_t stride[kMaxLeadingDims] = {};  // in elements

  explicit constexpr operator bool() const { return data != nullptr; }

  char* row(int64_t m) const {
    int64_t offset = 0;
    for (int i = ndim - 1; i > 0; --i) {
      offset += m % size[i] * stride[i];
      m /= size[i];
    }
    if (ndim > 0) offset += m * stride[0];
    return data + offset * element_size(dtype);
  }
};

// A contiguous weight or bias; data is null where the operator has none.
struct Array {
  char* data = nullptr;
  Dtype dtype = Dtype::kFloat32;

  explicit constexpr operator bool() const { return data != nullptr; }
};

// A call in steps: the tasks of a step may run at once, and begin when all those of the step before are done.
struct Steps {
  int64_t count;
  int64_t (*tasks)(const void* context, int64_t step);  // how many a step has
  void (*run)(void* context, int64_t step, int64_t task);
  void* context;
};
// Runs them on the threads of the host's pool, and returns when all are done.
using RunSteps = void (*)(const Steps& steps);

struct Problem {
  int64_t M, D, H;
  Array w1, b1, w2, b2;  // [H, D], [H], [D, H], [D]
  Array scale;           // [scale_size]; absent: alpha alone
  int64_t scale_size;    // 1 or D
  Rows row_scale;        // [M], one element a row; absent: 1
  float alpha;
  Activation activation;
  bool skip;
  Dtype dtype;      // of the products
  int threads = 1;  // in the host's pool; results do not depend on it
  RunSteps run_steps = nullptr;
};

struct ForwardParams : Problem {
  Rows x, residual;
  Rows y;
  Array z;                       // [M, H] in the compute dtype; absent: not kept
  Array x_kept;                  // [M, D] x in the compute dtype, of an x that is fp32; absent: not kept
  const char* packed = nullptr;  // both weights as Kernels::pack lays them, aligned to 64; absent: packed by the call
};

struct BackwardParams : Problem {
  Rows dy, x;
  Array z;                   // absent: x gives it again
  Rows dx;                   // each result absent where nobody asked for it
  Array dw1, db1, dw2, db2;  // in the dtypes of their parameters
  Array dscale;
};

}  // namespace aim_fast
