// A whole call of the CUDA backend: brings what a family of kernels cannot read as it lies into its form, then runs
// them.
#include "cuda/kernels.h"

#include <vector>

#include "cuda/convert.h"
#include "cuda/device.h"
#include "cuda/sum.h"

namespace aim_fast::cuda {
namespace {

constexpr int64_t kAlignment = 1024;

// Hands out workspace; without one it only counts.
class Arena {
 public:
  explicit Arena(char* base) : base_(base) {}
  char* take(int64_t bytes) {
    char* p = base_ + used_;
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return base_ ? p : reinterpret_cast<char*>(kAlignment);  // never null: absent tensors are
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

// The form that all families read without a second thought: vectors of 16 bytes wherever a row begins.
bool aligned(const char* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

Rows contiguous_rows(char* data, Dtype dtype, int64_t rows, int64_t columns) {
  Rows out;
  out.data = data;
  out.dtype = dtype;
  if (rows != 1) {
    out.ndim = 1;
    out.size[0] = rows;
    out.stride[0] = columns;
  }
  return out;
}

// What has to be converted before the kernels run.
class Preparation {
 public:
  Preparation(Arena& arena, const Kernels& kernels) : arena_(arena), kernels_(kernels) {}

  // A weight in the compute dtype, times a factor a row.
  void weight(Array& w, int64_t rows, int64_t columns, Dtype dtype, const Array& factor = {}) {
    if (w.dtype == dtype && aligned(w.data) && !factor) return;
    const Array to{arena_.take(rows * columns * element_size(dtype)), dtype};
    conversions_.push_back({contiguous_rows(w.data, w.dtype, rows, columns), to, rows, columns, factor});
    w = to;
  }
  // A vector or matrix of which only the alignment can be wrong.
  void array(Array& a, int64_t rows, int64_t columns) {
    if (a && !aligned(a.data)) weight(a, rows, columns, a.dtype);
  }
  // Rows that a kernel streams, in this dtype.
  void streamed(Rows& rows, int64_t count, int64_t columns, Dtype dtype) {
    if (!rows || (rows.dtype == dtype && kernels_.takes_rows(rows, columns))) return;
    copy(rows, count, columns, dtype);
  }
  // The same rows in this dtype, where they are not, beside them; into `to` or the workspace. Null where they are.
  char* beside(const Rows& rows, int64_t count, int64_t columns, Dtype dtype, char* to = nullptr) {
    if (!rows || rows.dtype == dtype) return nullptr;
    if (!to) to = arena_.take(count * columns * element_size(dtype));
    conversions_.push_back({rows, {to, dtype}, count, columns, {}});
    return to;
  }
  // Rows that a kernel reads one by one.
  void rows(Rows& rows, int64_t count, int64_t columns) {
    if (rows && !begins_on_vectors(rows)) copy(rows, count, columns, rows.dtype);
  }

  int run(void* stream) const { return convert(conversions_, stream); }

 private:
  void copy(Rows& rows, int64_t count, int64_t columns, Dtype dtype) {
    const Array to{arena_.take(count * columns * element_size(dtype)), dtype};
    conversions_.push_back({rows, to, count, columns, {}});
    rows = contiguous_rows(to.data, dtype, count, columns);
  }

  Arena& arena_;
  const Kernels& kernels_;
  std::vector<Conversion> conversions_;
};

// Rows of another 16-bit type than the products' are read as fp32.
Dtype streamed_dtype(const Rows& rows, const Problem& p) { return rows.dtype == p.dtype ? p.dtype : Dtype::kFloat32; }

void prepare(Problem& p, Preparation& preparation) {
  preparation.weight(p.w1, p.H, p.D, p.dtype);
  preparation.weight(p.w2, p.D, p.H, p.dtype);
  preparation.array(p.b1, 1, p.H);
  preparation.array(p.b2, 1, p.D);
  preparation.array(p.scale, 1, p.scale_size);
}

// Without workspace nothing is launched: the arena then tells how much it takes.
int run_forward(ForwardParams p, const Device& device, Arena& arena, bool launch) {
  const Kernels& kernels = *kernels_of(device.family);
  Preparation preparation(arena, kernels);
  prepare(p, preparation);
  Intermediates between;
  if (kernels.by_products) {
    between.x = preparation.beside(p.x, p.M, p.D, p.dtype, p.x_kept.data);
    between.h = arena.take(p.M * p.H * element_size(p.dtype));
    preparation.rows(p.x, p.M, p.D);
  } else {
    preparation.streamed(p.x, p.M, p.D, streamed_dtype(p.x, p));
  }
  preparation.rows(p.residual, p.M, p.D);
  if (!launch) return 0;
  if (const int error = preparation.run(device.stream)) return error;
  return kernels.forward(p, between, device);
}

int run_backward(const BackwardParams& call, const Device& device, Arena& arena, bool launch) {
  const Kernels& kernels = *kernels_of(device.family);
  BackwardParams p = call;
  const Wanted wanted{bool(p.dw1), p.dw2 || p.dscale, bool(p.db1), p.db2 || (p.dscale && p.b2)};
  const bool needs_dz = wanted.dw1 || wanted.db1, by_rows = p.dx || needs_dz || wanted.dw2;
  const int64_t hidden_bytes = p.M * p.H * element_size(p.dtype);
  Intermediates between;

  Preparation preparation(arena, kernels);
  prepare(p, preparation);
  const bool wide = p.scale && p.scale_size > 1;
  if (wide) {
    // K1's copy of w2 has the scale in it.
    p.w2 = call.w2;
    preparation.weight(p.w2, p.D, p.H, p.dtype, p.scale);
    p.scale = {};
  }
  if (kernels.by_products) {
    between.dy = preparation.beside(p.dy, p.M, p.D, p.dtype);
    preparation.rows(p.dy, p.M, p.D);
  } else {
    preparation.streamed(p.dy, p.M, p.D, by_rows ? streamed_dtype(p.dy, p) : p.dtype);
  }
  if (wanted.dw1) preparation.streamed(p.x, p.M, p.D, p.dtype);
  preparation.array(p.z, p.M, p.H);
  const bool recompute = by_rows && !p.z;
  ForwardParams again;
  Device by_rule = device;
  by_rule.plan = -1;  // the forward has plans of its own
  if (recompute) {
    static_cast<Problem&>(again) = p;
    again.x = call.x;
    again.z = p.z = {arena.take(hidden_bytes), p.dtype};
  }
  if (needs_dz || (p.dx && kernels.by_products)) between.dz = arena.take(hidden_bytes);
  if (wanted.dw2) between.h = arena.take(hidden_bytes);
  const bool by_k1 = !between.dy && p.dy.dtype != p.dtype && (wanted.dw2 || wanted.db2);
  if (by_k1) between.dy = arena.take(p.M * p.D * element_size(p.dtype));
  const bool by_columns = wanted.dw1 || wanted.dw2 || wanted.db1 || wanted.db2;
  if (by_columns) {
    between.splits = kernels.splits(call, wanted, device);
    const int64_t products = wanted.dw1 || wanted.dw2 ? int64_t{between.splits} * 2 : 0;  // biases alone need none
    between.dw = reinterpret_cast<float*>(arena.take(products * p.H * p.D * 4));
    between.sums = reinterpret_cast<float*>(arena.take(int64_t{between.splits} * (p.H + p.D) * 4));
  }
  if (!launch) {
    if (recompute) run_forward(again, by_rule, arena, false);
    return 0;
  }

  int error = preparation.run(device.stream);
  if (!error && recompute) error = run_forward(again, by_rule, arena, true);
  if (!error && by_rows) error = kernels.backward_rows(p, between, device);
  if (between.dy) p.dy = contiguous_rows(between.dy, p.dtype, p.M, p.D);
  if (!error && by_columns) error = kernels.backward_columns(p, wanted, between, device);
  if (!error && between.splits) error = sum_partials(call, between, device);
  return error;
}

}  // namespace

const Kernels* kernels_of(Family family) {
  if (family == Family::kTiles) return &tiles_kernels;
  if (family == Family::kAmpere) return &ampere_kernels;
  if constexpr (kHasHopper) return &hopper_kernels;
  return nullptr;
}

int64_t forward_workspace(const ForwardParams& p, const Device& device) {
  Arena arena(nullptr);
  run_forward(p, device, arena, false);
  return arena.used();
}

int forward(const ForwardParams& p, const Device& device, char* workspace) {
  Arena arena(workspace);
  return run_forward(p, device, arena, true);
}

int64_t backward_workspace(const BackwardParams& p, const Device& device) {
  Arena arena(nullptr);
  run_backward(p, device, arena, false);
  return arena.used();
}

int backward(const BackwardParams& p, const Device& device, char* workspace) {
  Arena arena(workspace);
  return run_backward(p, device, arena, true);
}

}  // namespace aim_fast::cuda
