// aim_fast::cuda_forward and cuda_backward: the operators of aim_fast/ops.py on the CUDA kernels, on torch's stable
// ABI.
//
// Compiled with AIM_FAST_EMULATED they take CPU tensors, and the same kernels run under emulation: that is for tests.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "binding_call.h"
#include "cuda/device.h"
#include "cuda/kernels.h"

#ifndef AIM_FAST_EMULATED
// Null in a process whose torch has no CUDA: the library still loads there.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);
#endif

namespace aim_fast {
namespace {

// Launches go to the device of a call and to torch's current stream there.
class Launches {
 public:
  explicit Launches(Place place)
#ifndef AIM_FAST_EMULATED
      : guard_(place.index)
#endif
  {
    void* stream = nullptr;
#ifndef AIM_FAST_EMULATED
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, "adapter: this torch is built without CUDA");
    check_shim(aoti_torch_get_current_cuda_stream(place.index, &stream));
#endif
    STD_TORCH_CHECK(cuda::find_device(place.index, stream, device_),
                    "adapter: the CUDA kernels were compiled for compute capability ", cuda::kArchs.data(),
                    ", which this device is below; use another backend");
  }
  // Sets whose kernels run the call; raises where none take it.
  const cuda::Device& choose(const Problem& p, bool backward, const std::string& kernels) {
    bool taken = false;
    try {
      taken = cuda::choose_plan(p, backward, kernels, device_);
    } catch (const std::invalid_argument& error) {
      STD_TORCH_CHECK(false, error.what());
    }
    STD_TORCH_CHECK(taken, "adapter: the CUDA kernels", kernels.empty() ? "" : " of ", kernels,
                    " do not take D = ", p.D, ", H = ", p.H, " in this dtype on this device; use another backend");
    return device_;
  }

 private:
#ifndef AIM_FAST_EMULATED
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  cuda::Device device_;
};

void check(int error) { STD_TORCH_CHECK(error == 0, "adapter: a CUDA kernel did not launch, cudaError_t ", error); }

// Uninitialised; torch's allocator aligns to 512 bytes or, on the CPU, to 64.
Tensor workspace(int64_t bytes, Place place, char** aligned) {
  constexpr int64_t kAlignment = 1024;
  Tensor t = empty({bytes ? (bytes + kAlignment) / 4 : 0}, Dtype::kFloat32, place);
  const auto address = reinterpret_cast<uintptr_t>(bytes ? t.mutable_data_ptr() : nullptr);
  *aligned = reinterpret_cast<char*>((address + kAlignment - 1) / kAlignment * kAlignment);
  return t;
}

std::tuple<Tensor, OptionalTensor, OptionalTensor> forward_cuda(
    const Tensor& x, const Tensor& w1, const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2,
    const OptionalTensor& scale, const OptionalTensor& row_scale, const OptionalTensor& residual,
    std::string activation, bool skip, double alpha, ScalarType dtype, bool keep_z, bool keep_x, std::string kernels) {
  const Place place = place_of(x);
  Launches launches(place);
  ForwardParams p;
  Arrays arrays(place);
  Tensor y = prepare_forward(p, arrays, x, w1, b1, w2, b2, scale, row_scale, residual, activation, skip, alpha, dtype,
                             Pages::kAny);
  const cuda::Device& device = launches.choose(p, false, kernels);
  auto [z, x_kept] = prepare_kept(p, x, keep_z, keep_x, Pages::kAny);
  if (p.M == 0) return {y, z, x_kept};
  char* memory;
  const Tensor kept = workspace(cuda::forward_workspace(p, device), place, &memory);
  check(cuda::forward(p, device, memory));
  return {y, z, x_kept};
}

Gradients backward_cuda(const Tensor& dy, const OptionalTensor& x, const OptionalTensor& z, const Tensor& w1,
                        const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2,
                        const OptionalTensor& scale, const OptionalTensor& row_scale, std::string activation, bool skip,
                        double alpha, ScalarType dtype, ScalarType x_dtype, int64_t needs, std::string kernels) {
  const Place place = place_of(dy);
  Launches launches(place);
  BackwardParams p;
  Arrays arrays(place);
  Gradients results = prepare_backward(p, arrays, dy, x, z, w1, b1, w2, b2, scale, row_scale, activation, skip, alpha,
                                       dtype, x_dtype, needs, Pages::kAny);
  const cuda::Device& device = launches.choose(p, true, kernels);
  if (p.M == 0) {
    std::apply([](auto&... t) { (torch::stable::zero_(t), ...); }, results);
    return results;
  }
  char* memory;
  const Tensor kept = workspace(cuda::backward_workspace(p, device), place, &memory);
  check(cuda::backward(p, device, memory));
  return results;
}

std::string choose_cuda_kernels(std::string choice) {
  try {
    return cuda::choose_kernels(choice);
  } catch (const std::invalid_argument& error) {
    STD_TORCH_CHECK(false, error.what());
  }
}

// What cuda_forward and cuda_backward take as `kernels` on a device; "" where they do not take such a call.
std::string plans(int64_t device, int64_t D, int64_t H, ScalarType dtype, bool backward) {
  Problem p = {};
  p.M = 1;
  p.D = D;
  p.H = H;
  p.dtype = dtype_of(dtype, "the compute dtype");
  cuda::Device found;
  return cuda::find_device(static_cast<int>(device), nullptr, found) ? cuda::plans(p, backward, found) : "";
}

std::string archs() { return std::string(cuda::kArchs); }

void emulate(int64_t order, int64_t seed, int64_t sms) {
  cuda::emulate(static_cast<int>(order), seed, static_cast<int>(sms));
}

}  // namespace
}  // namespace aim_fast

STABLE_TORCH_LIBRARY_FRAGMENT(aim_fast, m) {
  m.def(
      "cuda_forward(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? scale, Tensor? row_scale, "
      "Tensor? residual, str activation, bool skip, float alpha, ScalarType dtype, bool keep_z, bool keep_x, str "
      "kernels=\"\") -> (Tensor, Tensor?, Tensor?)");
  m.def(
      "cuda_backward(Tensor dy, Tensor? x, Tensor? z, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? scale, "
      "Tensor? row_scale, str activation, bool skip, float alpha, ScalarType dtype, ScalarType x_dtype, int needs, str "
      "kernels=\"\") -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("cuda_choose_kernels(str choice) -> str");
  m.def("cuda_plans(int device, int D, int H, ScalarType dtype, bool backward) -> str");
  m.def("cuda_archs() -> str");
  m.def("cuda_emulate(int order, int seed, int sms) -> ()");
}

#ifdef AIM_FAST_EMULATED
STABLE_TORCH_LIBRARY_IMPL(aim_fast, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(aim_fast, CUDA, m) {
#endif
  m.impl("cuda_forward", TORCH_BOX(&aim_fast::forward_cuda));
  m.impl("cuda_backward", TORCH_BOX(&aim_fast::backward_cuda));
}

STABLE_TORCH_LIBRARY_IMPL(aim_fast, CompositeExplicitAutograd, m) {
  m.impl("cuda_choose_kernels", TORCH_BOX(&aim_fast::choose_cuda_kernels));
  m.impl("cuda_plans", TORCH_BOX(&aim_fast::plans));
  m.impl("cuda_archs", TORCH_BOX(&aim_fast::archs));
  m.impl("cuda_emulate", TORCH_BOX(&aim_fast::emulate));
}
