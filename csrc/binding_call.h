// The operators' arguments as the structs of common/params.h: what the bindings of all devices share. The Python side
// has checked the arguments; what is checked again here protects memory.
#pragma once

#include <string>
#include <tuple>

#include "binding_tensors.h"

namespace aim_fast {

inline const char* const kActivations[] = {"gelu", "gelu_tanh", "quick_gelu", "relu",
                                           "silu", "tanh",      "leaky_relu", "identity"};

inline Activation activation_of(const std::string& name) {
  int i = 0;
  for (const char* known : kActivations) {
    if (name == known) return static_cast<Activation>(i);
    ++i;
  }
  STD_TORCH_CHECK(false, "adapter: activation is '", name, "'; expected one of aim_fast.ACTIVATIONS");
}

inline void fill(Problem& p, Arrays& arrays, const Tensor& shaped, const Tensor& w1, const OptionalTensor& b1,
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
}

// The forward but for what it keeps: fills p in, allocates y, and leaves what has to live as long in arrays.
inline Tensor prepare_forward(ForwardParams& p, Arrays& arrays, const Tensor& x, const Tensor& w1,
                              const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2,
                              const OptionalTensor& scale, const OptionalTensor& row_scale,
                              const OptionalTensor& residual, const std::string& activation, bool skip, double alpha,
                              ScalarType dtype, Pages pages) {
  fill(p, arrays, x, w1, b1, w2, b2, scale, activation, skip, alpha, dtype);
  const Place place = place_of(x);
  p.x = rows_of(x, 1, place, "x");
  p.row_scale = broadcast_rows(row_scale, x);
  Dtype out = p.dtype;
  if (skip) out = promote(out, p.x.dtype);
  if (residual) {
    check_shape(*residual, x, "residual");
    p.residual = rows_of(*residual, 1, place, "residual");
    out = promote(out, p.residual.dtype);
  }
  Tensor y = empty_like(residual ? *residual : x, out, pages);
  p.y = rows_of(y, 1, place, "y");
  return y;
}

// What the forward keeps for the backward, once p is filled in: z, and x where the compute dtype is narrower than its
// own; each if it is wanted.
inline std::tuple<OptionalTensor, OptionalTensor> prepare_kept(ForwardParams& p, const Tensor& x, bool keep_z,
                                                               bool keep_x, Pages pages) {
  const Place place = place_of(x);
  OptionalTensor z, x_kept;
  if (keep_z) {
    z = empty({p.M, p.H}, p.dtype, place, pages);
    p.z = array_of(*z, p.dtype);
  }
  if (keep_x && element_size(p.dtype) < element_size(p.x.dtype)) {
    x_kept = empty(std::vector<int64_t>(x.sizes().begin(), x.sizes().end()), p.dtype, place, pages);
    p.x_kept = array_of(*x_kept, p.dtype);
  }
  return {z, x_kept};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;  // dx, dw1, db1, dw2, db2, dscale

// The backward but for running it: fills p in and allocates the results, empty where they are not wanted.
inline Gradients prepare_backward(BackwardParams& p, Arrays& arrays, const Tensor& dy, const OptionalTensor& x,
                                  const OptionalTensor& z, const Tensor& w1, const OptionalTensor& b1, const Tensor& w2,
                                  const OptionalTensor& b2, const OptionalTensor& scale,
                                  const OptionalTensor& row_scale, const std::string& activation, bool skip,
                                  double alpha, ScalarType dtype, ScalarType x_dtype, int64_t needs, Pages pages) {
  const Place place = place_of(dy);
  fill(p, arrays, dy, w1, b1, w2, b2, scale, activation, skip, alpha, dtype);
  p.dy = rows_of(dy, 1, place, "dy");
  p.row_scale = broadcast_rows(row_scale, dy);
  if (x) {
    check_shape(*x, dy, "dy");
    p.x = rows_of(*x, 1, place, "x");
  }
  p.z = arrays.take(z, p.M * p.H, "z");
  STD_TORCH_CHECK(x || !(needs & 2), "adapter: dw1 is asked for but x was not kept");
  STD_TORCH_CHECK(x || z || !(needs & 47), "adapter: neither x nor z was kept; the backward needs one of them");
  auto wanted = [&](int i, const auto& parameter) { return (needs >> i & 1) && bool(parameter); };
  auto result = [&](int i, const Array& parameter, std::vector<int64_t> sizes, Array& out) {
    if (!wanted(i, parameter)) return empty({0}, Dtype::kFloat32, place);
    Tensor t = empty(sizes, parameter.dtype, place);
    out = array_of(t, parameter.dtype);
    return t;
  };
  const Dtype dx_dtype = dtype_of(x_dtype, "x");
  Tensor dx = needs & 1 ? empty_like(dy, dx_dtype, pages) : empty({0}, Dtype::kFloat32, place);
  if (needs & 1) p.dx = rows_of(dx, 1, place, "dx");
  Tensor dw1 = result(1, p.w1, {p.H, p.D}, p.dw1);
  Tensor db1 = result(2, p.b1, {p.H}, p.db1);
  Tensor dw2 = result(3, p.w2, {p.D, p.H}, p.dw2);
  Tensor db2 = result(4, p.b2, {p.D}, p.db2);
  std::vector<int64_t> scale_sizes;
  if (scale) scale_sizes.assign(scale->dim(), p.scale_size);
  Tensor dscale = result(5, p.scale, scale_sizes, p.dscale);
  return {dx, dw1, db1, dw2, db2, dscale};
}

}  // namespace aim_fast
