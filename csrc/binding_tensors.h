// Tensors as the kernels see them: reads them into the structs of common/params.h, and allocates results.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <optional>
#include <vector>

#include "common/params.h"

namespace aim_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Where a call's tensors are.
struct Place {
  int32_t type, index;
  bool operator==(const Place&) const = default;
};

inline Place place_of(const Tensor& t) {
  return {t.is_cpu() ? aoti_torch_device_type_cpu() : aoti_torch_device_type_cuda(),
          t.is_cpu() ? 0 : t.get_device_index()};
}

// The macro for this has another name in torch 2.10.
inline void check_shim(AOTITorchError error) {
  STD_TORCH_CHECK(error == AOTI_TORCH_SUCCESS, "adapter: a function of torch's C interface failed");
}

inline Dtype dtype_of(ScalarType type, const char* name) {
  switch (type) {
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    default:
      STD_TORCH_CHECK(false, "adapter: ", name,
                      " has a dtype the kernels do not take; expected float32, bfloat16 or float16");
  }
}

inline Dtype promote(Dtype a, Dtype b) { return a == b ? a : Dtype::kFloat32; }

inline int32_t shim_dtype(Dtype dtype) {
  return dtype == Dtype::kFloat32    ? aoti_torch_dtype_float32()
         : dtype == Dtype::kBFloat16 ? aoti_torch_dtype_bfloat16()
                                     : aoti_torch_dtype_float16();
}

// Which large results ask for huge pages: they come fresh from the system, and small pages are faulted in one by one.
// Measured: EPYC (Zen 4), forward, without it: fp32, one thread, a y of 38 MB costs 16 % more, one of 5 MB nothing;
// bf16, two threads, one of 77 MB 14 % more, one of 134 MB 13 %. Tensors of train steps live longer, and where a host
// takes freed pages back, in a virtual machine, those of 77 to 480 MB lose 0..25 % by it there. Up to 64 MiB they gain:
// Xeon (Emerald Rapids), such a machine, two threads, time beside small pages mapped a block at a time: bf16, 19 MB
// 0.84, 25 MB 1.03, 33 MB 0.95, 38 MB 0.85, 51 MB 0.87; fp32, 10 MB 0.98, 16 MB 0.98, 58 MB 0.91.
enum class Pages { kAny, kHuge, kHugeInStep };
constexpr size_t kMostInStep = 64 << 20;

inline void advise_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes, [[maybe_unused]] Pages pages) {
#if defined(__linux__)
  if (pages == Pages::kHugeInStep && bytes > kMostInStep) return;
  constexpr uintptr_t kHugePage = 2 << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

inline Tensor empty(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, Dtype dtype, Place place,
                    Pages pages = Pages::kAny) {
  AtenTensorHandle handle = nullptr;
  check_shim(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                      shim_dtype(dtype), place.type, place.index, &handle));
  Tensor t(handle);
  if (pages != Pages::kAny) advise_pages(t.mutable_data_ptr(), t.numel() * element_size(dtype), pages);
  return t;
}

inline Tensor empty(const std::vector<int64_t>& sizes, Dtype dtype, Place place, Pages pages = Pages::kAny) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = step;
    step *= sizes[i] > 1 ? sizes[i] : 1;
  }
  return empty(sizes, strides, dtype, place, pages);
}

// Of t's shape; of its strides too when they permute the leading dimensions of a contiguous tensor (as in ops.py).
inline Tensor empty_like(const Tensor& t, Dtype dtype, Pages pages = Pages::kAny) {
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
  const Place place = place_of(t);
  return dense && covered == ndim ? empty(sizes, strides, dtype, place, pages) : empty(sizes, dtype, place, pages);
}

inline void check_place(const Tensor& t, Place place, const char* name) {
  STD_TORCH_CHECK(t.is_cpu() || t.is_cuda(), "adapter: ", name, " is neither on the CPU nor on a CUDA device");
  STD_TORCH_CHECK(place_of(t) == place, "adapter: ", name, " is on another device than x; expected one device for all");
}

// A further leading dimension, merged with the one before where one stride covers both.
inline void add_dimension(Rows& rows, int64_t size, int64_t stride, const char* name) {
  if (size == 1) return;
  if (rows.ndim && rows.stride[rows.ndim - 1] == size * stride) {
    rows.size[rows.ndim - 1] *= size;
    rows.stride[rows.ndim - 1] = stride;
    return;
  }
  STD_TORCH_CHECK(rows.ndim < kMaxLeadingDims, "adapter: ", name, " has more than ", kMaxLeadingDims,
                  " leading dimensions that do not merge; use .contiguous()");
  rows.size[rows.ndim] = size;
  rows.stride[rows.ndim++] = stride;
}

// The leading dimensions of t, without the last `inner`, merged where one stride covers two of them.
inline Rows rows_of(const Tensor& t, int64_t inner, Place place, const char* name) {
  check_place(t, place, name);
  Rows rows;
  rows.data = static_cast<char*>(const_cast<void*>(t.const_data_ptr()));
  rows.dtype = dtype_of(t.scalar_type(), name);
  const int64_t leading = t.dim() - inner;
  STD_TORCH_CHECK(inner == 0 || t.size(leading) == 1 || t.stride(leading) == 1, "adapter: ", name,
                  " has a last dimension of stride ", inner ? t.stride(leading) : 0, "; expected 1; use .contiguous()");
  for (int64_t i = 0; i < leading; ++i) add_dimension(rows, t.size(i), t.stride(i), name);
  return rows;
}

// Tensors that a call has to keep alive: contiguous copies of those that are not.
class Arrays {
 public:
  explicit Arrays(Place place) : place_(place) {}

  Array take(const Tensor& t, int64_t numel, const char* name) {
    check_place(t, place_, name);
    STD_TORCH_CHECK(t.numel() == numel, "adapter: ", name, " has ", t.numel(), " elements; expected ", numel);
    if (t.is_contiguous())
      return {static_cast<char*>(const_cast<void*>(t.const_data_ptr())), dtype_of(t.scalar_type(), name)};
    kept_.push_back(torch::stable::contiguous(t));
    return {static_cast<char*>(kept_.back().mutable_data_ptr()), dtype_of(t.scalar_type(), name)};
  }
  Array take(const OptionalTensor& t, int64_t numel, const char* name) { return t ? take(*t, numel, name) : Array{}; }

 private:
  Place place_;
  std::vector<Tensor> kept_;
};

// row_scale [...] broadcast to the leading dimensions of `like`.
inline Rows broadcast_rows(const OptionalTensor& t, const Tensor& like) {
  Rows rows;
  if (!t) return rows;
  check_place(*t, place_of(like), "row_scale");
  rows.data = static_cast<char*>(const_cast<void*>(t->const_data_ptr()));
  rows.dtype = dtype_of(t->scalar_type(), "row_scale");
  const int64_t leading = like.dim() - 1, missing = leading - t->dim();
  STD_TORCH_CHECK(missing >= 0, "adapter: row_scale has more dimensions than x has leading ones");
  for (int64_t i = 0; i < leading; ++i) {
    const int64_t size = like.size(i), own = i < missing ? 1 : t->size(i - missing);
    STD_TORCH_CHECK(own == 1 || own == size, "adapter: row_scale does not broadcast to the leading dimensions of x");
    add_dimension(rows, size, own == 1 ? 0 : t->stride(i - missing), "row_scale");
  }
  return rows;
}

inline void check_shape(const Tensor& t, const Tensor& like, const char* name) {
  bool same = t.dim() == like.dim();
  for (int64_t i = 0; same && i < t.dim(); ++i) same = t.size(i) == like.size(i);
  STD_TORCH_CHECK(same, "adapter: ", name, " has another shape than x");
}

inline Array array_of(Tensor& t, Dtype dtype) { return {static_cast<char*>(t.mutable_data_ptr()), dtype}; }

}  // namespace aim_fast
