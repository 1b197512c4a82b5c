// The operators of aim_fast/ops.py for CPU tensors, on torch's stable ABI: the only file that includes torch headers.
//
// It reads the tensors into the structs of common/params.h, allocates the results, and calls the kernels of the chosen
// instruction set. The Python side has checked the arguments; what is checked again here protects memory.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <atomic>
#include <chrono>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common/params.h"
#include "cpu/kernels.h"

namespace aim_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

const char* const kActivations[] = {"gelu", "gelu_tanh", "quick_gelu", "relu",
                                    "silu", "tanh",      "leaky_relu", "identity"};

Activation activation_of(const std::string& name) {
  int i = 0;
  for (const char* known : kActivations) {
    if (name == known) return static_cast<Activation>(i);
    ++i;
  }
  STD_TORCH_CHECK(false, "adapter: activation is '", name, "'; expected one of aim_fast.ACTIVATIONS");
}

Dtype dtype_of(ScalarType type, const char* name) {
  switch (type) {
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    default:
      STD_TORCH_CHECK(false, "adapter: ", name,
                      " has a dtype the CPU kernel does not take; expected float32, bfloat16 or float16");
  }
}

Dtype promote(Dtype a, Dtype b) { return a == b ? a : Dtype::kFloat32; }

int32_t shim_dtype(Dtype dtype) {
  return dtype == Dtype::kFloat32    ? aoti_torch_dtype_float32()
         : dtype == Dtype::kBFloat16 ? aoti_torch_dtype_bfloat16()
                                     : aoti_torch_dtype_float16();
}

// Large results come as fresh pages from the system, and small pages would be faulted in one by one.
// Measured: EPYC (Zen 4), fp32 forward, one thread: without it a y of 38 MB costs 16 % more, one of 5 MB nothing.
void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHugePage = 2 << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

Tensor empty(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, Dtype dtype) {
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), shim_dtype(dtype),
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  Tensor t(handle);
  advise_huge_pages(t.mutable_data_ptr(), t.numel() * element_size(dtype));
  return t;
}

Tensor empty(const std::vector<int64_t>& sizes, Dtype dtype) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = step;
    step *= sizes[i] > 1 ? sizes[i] : 1;
  }
  return empty(sizes, strides, dtype);
}

// Of t's shape; of its strides too when they permute the leading dimensions of a contiguous tensor (as in ops.py).
Tensor empty_like(const Tensor& t, Dtype dtype) {
  const int64_t ndim = t.dim();
  std::vector<int64_t> sizes(ndim), strides(ndim);
  for (int64_t i = 0; i < ndim; ++i) sizes[i] = t.size(i), strides[i] = t.stride(i);
  bool dense = sizes[ndim - 1] == 1 || strides[ndim - 1] == 1;
  int64_t expected = 1, covered = 0;
  for (int64_t i = 0; i < ndim; ++i) covered += sizes[i] == 1;
  for (bool found = true; dense && found && covered < ndim;) {
    found = false;
    for (int64_t i = 0; i < ndim && !found; ++i) {
      if (sizes[i] != 1 && strides[i] == expected && sizes[i] != 0) {
        expected *= sizes[i];
        ++covered;
        found = true;
      }
    }
  }
  return dense && covered == ndim ? empty(sizes, strides, dtype) : empty(sizes, dtype);
}

void check_cpu(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.is_cpu(), "adapter: ", name, " is not on the CPU; expected CPU tensors only");
}

// The leading dimensions of t, without the last `inner`, merged where one stride covers two of them.
Rows rows_of(const Tensor& t, int64_t inner, const char* name) {
  check_cpu(t, name);
  Rows rows;
  rows.data = static_cast<char*>(const_cast<void*>(t.const_data_ptr()));
  rows.dtype = dtype_of(t.scalar_type(), name);
  const int64_t leading = t.dim() - inner;
  STD_TORCH_CHECK(inner == 0 || t.size(leading) == 1 || t.stride(leading) == 1, "adapter: ", name,
                  " has a last dimension of stride ", inner ? t.stride(leading) : 0, "; expected 1; use .contiguous()");
  for (int64_t i = 0; i < leading; ++i) {
    const int64_t size = t.size(i), stride = t.stride(i);
    if (size == 1) continue;
    if (rows.ndim && rows.stride[rows.ndim - 1] == size * stride) {
      rows.size[rows.ndim - 1] *= size;
      rows.stride[rows.ndim - 1] = stride;
      continue;
    }
    STD_TORCH_CHECK(rows.ndim < kMaxLeadingDims, "adapter: ", name, " has more than ", kMaxLeadingDims,
                    " leading dimensions that do not merge; use .contiguous()");
    rows.size[rows.ndim] = size;
    rows.stride[rows.ndim++] = stride;
  }
  return rows;
}

// Tensors that a call has to keep alive: contiguous copies of those that are not.
class Arrays {
 public:
  Array take(const Tensor& t, int64_t numel, const char* name) {
    check_cpu(t, name);
    STD_TORCH_CHECK(t.numel() == numel, "adapter: ", name, " has ", t.numel(), " elements; expected ", numel);
    if (t.is_contiguous())
      return {static_cast<char*>(const_cast<void*>(t.const_data_ptr())), dtype_of(t.scalar_type(), name)};
    kept_.push_back(torch::stable::contiguous(t));
    return {static_cast<char*>(kept_.back().mutable_data_ptr()), dtype_of(t.scalar_type(), name)};
  }
  Array take(const OptionalTensor& t, int64_t numel, const char* name) { return t ? take(*t, numel, name) : Array{}; }

 private:
  std::vector<Tensor> kept_;
};

// Tasks are drawn one by one, so that a thread that is held up delays none but its own.
void run_parallel(int64_t count, Task task, void* context) {
  const int64_t threads = torch::stable::get_num_threads();
  if (threads <= 1 || count <= 1) {
    for (int64_t i = 0; i < count; ++i) task(context, i);
    return;
  }
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads < count ? threads : count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share) {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(context, i);
    }
  });
}

void fill(Problem& p, Arrays& arrays, const Tensor& shaped, const Tensor& w1, const OptionalTensor& b1,
          const Tensor& w2, const OptionalTensor& b2, const OptionalTensor& scale, const std::string& activation,
          bool skip, double alpha, ScalarType dtype) {
  STD_TORCH_CHECK(shaped.dim() >= 1 && w1.dim() == 2 && w2.dim() == 2,
                  "adapter: expected x [..., D], w1 [H, D], w2 [D, H]");
  p.D = shaped.size(shaped.dim() - 1);
  p.H = w1.size(0);
  STD_TORCH_CHECK(p.D >= 1 && p.H >= 1, "adapter: expected D >= 1 and H >= 1");
  p.M = shaped.numel() / p.D;
  p.w1 = arrays.take(w1, p.H * p.D, "w1");
  p.w2 = arrays.take(w2, p.D * p.H, "w2");
  p.b1 = arrays.take(b1, p.H, "b1");
  p.b2 = arrays.take(b2, p.D, "b2");
  p.scale_size = scale ? scale->numel() : 1;
  STD_TORCH_CHECK(p.scale_size == 1 || p.scale_size == p.D, "adapter: scale has ", p.scale_size,
                  " elements; expected 1 or D = ", p.D);
  p.scale = arrays.take(scale, p.scale_size, "scale");
  p.alpha = static_cast<float>(alpha);
  p.activation = activation_of(activation);
  p.skip = skip;
  p.dtype = dtype_of(dtype, "the compute dtype");
  p.threads = static_cast<int>(torch::stable::get_num_threads());
  p.parallel_for = run_parallel;
}

// row_scale [...] broadcast to the leading dimensions of `like`.
Rows broadcast_rows(const OptionalTensor& t, const Tensor& like) {
  Rows rows;
  if (!t) return rows;
  check_cpu(*t, "row_scale");
  rows.data = static_cast<char*>(const_cast<void*>(t->const_data_ptr()));
  rows.dtype = dtype_of(t->scalar_type(), "row_scale");
  const int64_t leading = like.dim() - 1, missing = leading - t->dim();
  STD_TORCH_CHECK(missing >= 0, "adapter: row_scale has more dimensions than x has leading ones");
  for (int64_t i = 0; i < leading; ++i) {
    const int64_t size = like.size(i), own = i < missing ? 1 : t->size(i - missing);
    STD_TORCH_CHECK(own == 1 || own == size, "adapter: row_scale does not broadcast to the leading dimensions of x");
    const int64_t stride = own == 1 ? 0 : t->stride(i - missing);
    if (size == 1) continue;
    if (rows.ndim && rows.stride[rows.ndim - 1] == size * stride) {
      rows.size[rows.ndim - 1] *= size;
      rows.stride[rows.ndim - 1] = stride;
      continue;
    }
    STD_TORCH_CHECK(rows.ndim < kMaxLeadingDims,
                    "adapter: row_scale has too many leading dimensions; use .contiguous()");
    rows.size[rows.ndim] = size;
    rows.stride[rows.ndim++] = stride;
  }
  return rows;
}

void check_shape(const Tensor& t, const Tensor& like, const char* name) {
  bool same = t.dim() == like.dim();
  for (int64_t i = 0; same && i < t.dim(); ++i) same = t.size(i) == like.size(i);
  STD_TORCH_CHECK(same, "adapter: ", name, " has another shape than x");
}

Array array_of(Tensor& t, Dtype dtype) { return {static_cast<char*>(t.mutable_data_ptr()), dtype}; }

std::tuple<Tensor, Tensor> forward_cpu(const Tensor& x, const Tensor& w1, const OptionalTensor& b1, const Tensor& w2,
                                       const OptionalTensor& b2, const OptionalTensor& scale,
                                       const OptionalTensor& row_scale, const OptionalTensor& residual,
                                       std::string activation, bool skip, double alpha, ScalarType dtype, bool keep_z) {
  ForwardParams p;
  Arrays arrays;
  fill(p, arrays, x, w1, b1, w2, b2, scale, activation, skip, alpha, dtype);
  p.x = rows_of(x, 1, "x");
  p.row_scale = broadcast_rows(row_scale, x);
  Dtype out = p.dtype;
  if (skip) out = promote(out, p.x.dtype);
  if (residual) {
    check_shape(*residual, x, "residual");
    p.residual = rows_of(*residual, 1, "residual");
    out = promote(out, p.residual.dtype);
  }
  Tensor y = empty_like(residual ? *residual : x, out);
  Tensor z = empty({keep_z ? p.M : 0, p.H}, p.dtype);
  p.y = rows_of(y, 1, "y");
  if (keep_z) p.z = array_of(z, p.dtype);
  if (p.M > 0) kernels().forward(p);
  return {y, z};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward_cpu(
    const Tensor& dy, const OptionalTensor& x, const OptionalTensor& z, const Tensor& w1, const OptionalTensor& b1,
    const Tensor& w2, const OptionalTensor& b2, const OptionalTensor& scale, const OptionalTensor& row_scale,
    std::string activation, bool skip, double alpha, ScalarType dtype, ScalarType x_dtype, int64_t needs) {
  BackwardParams p;
  Arrays arrays;
  fill(p, arrays, dy, w1, b1, w2, b2, scale, activation, skip, alpha, dtype);
  p.dy = rows_of(dy, 1, "dy");
  p.row_scale = broadcast_rows(row_scale, dy);
  if (x) {
    check_shape(*x, dy, "dy");
    p.x = rows_of(*x, 1, "x");
  }
  p.z = arrays.take(z, p.M * p.H, "z");
  STD_TORCH_CHECK(x || !(needs & 2), "adapter: dw1 is asked for but x was not kept");
  STD_TORCH_CHECK(x || z || !(needs & 47), "adapter: neither x nor z was kept; the backward needs one of them");
  auto wanted = [&](int i, const auto& parameter) { return (needs >> i & 1) && bool(parameter); };
  auto result = [&](int i, const Array& parameter, std::vector<int64_t> sizes, Array& out) {
    if (!wanted(i, parameter)) return empty({0}, Dtype::kFloat32);
    Tensor t = empty(sizes, parameter.dtype);
    out = array_of(t, parameter.dtype);
    return t;
  };
  const Dtype dx_dtype = dtype_of(x_dtype, "x");
  Tensor dx = needs & 1 ? empty_like(dy, dx_dtype) : empty({0}, Dtype::kFloat32);
  if (needs & 1) p.dx = rows_of(dx, 1, "dx");
  Tensor dw1 = result(1, p.w1, {p.H, p.D}, p.dw1);
  Tensor db1 = result(2, p.b1, {p.H}, p.db1);
  Tensor dw2 = result(3, p.w2, {p.D, p.H}, p.dw2);
  Tensor db2 = result(4, p.b2, {p.D}, p.db2);
  std::vector<int64_t> scale_sizes;
  if (scale) scale_sizes.assign(scale->dim(), p.scale_size);
  Tensor dscale = result(5, p.scale, scale_sizes, p.dscale);
  kernels().backward(p);
  return {dx, dw1, db1, dw2, db2, dscale};
}

std::string isa() { return kernels().name; }

std::string isas() {
  const char* const* names;
  std::string all;
  for (int i = 0, n = available_kernels(&names); i < n; ++i) all += (i ? "," : "") + std::string(names[i]);
  return all;
}

// Returns the set in use before.
std::string set_isa(std::string name) {
  std::string before = isa();
  set_kernels(name.c_str());
  return before;
}

// GFLOP/s of register-only multiply-adds of a dtype's products on `threads` threads during about `seconds`.
double peak(std::string dtype, int64_t threads, double seconds) {
  using Clock = std::chrono::steady_clock;
  STD_TORCH_CHECK(dtype == "float32" || dtype == "bfloat16", "cpu_peak: dtype is '", dtype,
                  "'; expected float32 or bfloat16");
  const Dtype kind = dtype == "bfloat16" ? Dtype::kBFloat16 : Dtype::kFloat32;
  std::atomic<int64_t> flop{0};
  const auto start = Clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    if (begin == end) return;
    int64_t done = 0;
    while (elapsed() < seconds) done += kernels().peak(kind, 10000);
    flop += done;
  });
  return static_cast<double>(flop.load()) / elapsed() * 1e-9;
}

}  // namespace
}  // namespace aim_fast

STABLE_TORCH_LIBRARY_FRAGMENT(aim_fast, m) {
  m.def("cpu_isa() -> str");
  m.def("cpu_isas() -> str");
  m.def("cpu_set_isa(str name) -> str");
  m.def("cpu_peak(str dtype, int threads, float seconds) -> float");
}

STABLE_TORCH_LIBRARY_IMPL(aim_fast, CPU, m) {
  m.impl("adapter_forward", TORCH_BOX(&aim_fast::forward_cpu));
  m.impl("adapter_backward", TORCH_BOX(&aim_fast::backward_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(aim_fast, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&aim_fast::isa));
  m.impl("cpu_isas", TORCH_BOX(&aim_fast::isas));
  m.impl("cpu_set_isa", TORCH_BOX(&aim_fast::set_isa));
  m.impl("cpu_peak", TORCH_BOX(&aim_fast::peak));
}
