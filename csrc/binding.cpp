// The operators of aim_fast/ops.py for CPU tensors, on torch's stable ABI.
//
// binding_call.h reads the tensors into the structs of common/params.h and allocates the results; here are the kernels
// of the chosen instruction set, and the pool of threads that runs them.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <string>
#include <thread>
#include <tuple>

#include "binding_call.h"
#include "cpu/kernels.h"
#include "cpu/prepacked.h"

namespace aim_fast {
namespace {

constexpr int kSpins = 2000;  // some microseconds

// All steps in one region of the pool: entering and leaving one can cost as much as a thread takes to wake up. Every
// thread has a share of each step's tasks, always the same one, so that its rows stay in its own cache from step to
// step and from call to call; once done it draws from the others' shares, so that a thread that is held up delays none
// but its own task. A step waits only for tasks that somebody is at work on.
void run_steps(const Steps& steps) {
  int64_t most = 0;
  for (int64_t step = 0; step < steps.count; ++step) most = std::max(most, steps.tasks(steps.context, step));
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), most);
  if (threads <= 1) {
    for (int64_t step = 0; step < steps.count; ++step) {
      for (int64_t i = 0, n = steps.tasks(steps.context, step); i < n; ++i) steps.run(steps.context, step, i);
    }
    return;
  }
  // Of each step: how many tasks of each share have begun, and how many of all are done.
  const auto progress = std::make_unique<std::atomic<int64_t>[]>(steps.count * (threads + 1));
  std::atomic<bool> failed{false};
  std::exception_ptr error;  // of the first task that failed; the others still run, since threads wait for them
  const auto work = [&](int64_t self) {
    for (int64_t step = 0; step < steps.count; ++step) {
      std::atomic<int64_t>* begun = &progress[step * (threads + 1)];
      std::atomic<int64_t>& done = begun[threads];
      const int64_t count = steps.tasks(steps.context, step);
      for (int64_t turn = 0; turn < threads; ++turn) {
        const int64_t share = (self + turn) % threads;
        const int64_t first = share * count / threads, end = (share + 1) * count / threads;
        for (int64_t i; (i = first + begun[share].fetch_add(1, std::memory_order_relaxed)) < end;) {
          try {
            steps.run(steps.context, step, i);
          } catch (...) {
            if (!failed.exchange(true)) error = std::current_exception();
          }
          done.fetch_add(1, std::memory_order_release);
        }
      }
      for (int spins = 0; done.load(std::memory_order_acquire) < count; ++spins) {
        if (spins > kSpins) std::this_thread::yield();
      }
    }
  };
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share) work(share);
  });
  if (failed) std::rethrow_exception(error);
}

void on_this_machine(Problem& p) {
  p.threads = static_cast<int>(torch::stable::get_num_threads());
  p.run_steps = run_steps;
}

std::tuple<Tensor, Tensor, Tensor> forward_cpu(const Tensor& x, const Tensor& w1, const OptionalTensor& b1,
                                               const Tensor& w2, const OptionalTensor& b2, const OptionalTensor& scale,
                                               const OptionalTensor& row_scale, const OptionalTensor& residual,
                                               std::string activation, bool skip, double alpha, ScalarType dtype,
                                               bool keep_z, bool keep_x) {
  ForwardParams p;
  Arrays arrays(place_of(x));
  Tensor y = prepare_forward(p, arrays, x, w1, b1, w2, b2, scale, row_scale, residual, activation, skip, alpha, dtype,
                             keep_z || keep_x ? Pages::kHugeInStep : Pages::kHuge);
  auto [z, x_kept] = prepare_kept(p, x, keep_z, keep_x, Pages::kHugeInStep);
  on_this_machine(p);
  if (p.M > 0) kernels().forward(p);
  const Place place = place_of(x);
  return {y, z ? *z : empty({0, p.H}, p.dtype, place), x_kept ? *x_kept : empty({0}, p.dtype, place)};
}

// A buffer for forward_prepacked: both weights packed for products in dtype.
Tensor prepack_weights(const Tensor& w1, const Tensor& w2, ScalarType dtype) {
  ForwardParams p;
  Arrays arrays(place_of(w1));
  fill(p, arrays, w1, w1, {}, w2, {}, {}, kActivations[0], false, 1.0, dtype);
  on_this_machine(p);
  Tensor buffer = empty({prepacked_bytes(p) / element_size(Dtype::kFloat32)}, Dtype::kFloat32, place_of(w1));
  prepack(p, static_cast<char*>(buffer.mutable_data_ptr()));
  return buffer;
}

// (y, whether the buffer was good for this call); where it was not, the call packs the weights itself.
std::tuple<Tensor, bool> forward_prepacked(const Tensor& x, const Tensor& buffer, const Tensor& w1,
                                           const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2,
                                           const OptionalTensor& scale, const OptionalTensor& row_scale,
                                           const OptionalTensor& residual, std::string activation, bool skip,
                                           double alpha, ScalarType dtype) {
  ForwardParams p;
  Arrays arrays(place_of(x));
  Tensor y = prepare_forward(p, arrays, x, w1, b1, w2, b2, scale, row_scale, residual, activation, skip, alpha, dtype,
                             Pages::kHuge);
  const Array kept = arrays.take(buffer, buffer.numel(), "the prepacked buffer");
  p.packed = prepacked_panels(p, kept.data, buffer.numel() * element_size(kept.dtype));
  on_this_machine(p);
  if (p.M > 0) kernels().forward(p);
  return {y, p.packed != nullptr};
}

Gradients backward_cpu(const Tensor& dy, const OptionalTensor& x, const OptionalTensor& z, const Tensor& w1,
                       const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2,
                       const OptionalTensor& scale, const OptionalTensor& row_scale, std::string activation, bool skip,
                       double alpha, ScalarType dtype, ScalarType x_dtype, int64_t needs) {
  BackwardParams p;
  Arrays arrays(place_of(dy));
  Gradients results = prepare_backward(p, arrays, dy, x, z, w1, b1, w2, b2, scale, row_scale, activation, skip, alpha,
                                       dtype, x_dtype, needs, Pages::kHugeInStep);
  on_this_machine(p);
  kernels().backward(p);
  return results;
}

std::string isa() { return kernels().name; }

std::string isas() {
  const char* const* names;
  std::string all;
  for (int i = 0, n = available_kernels(&names); i < n; ++i) all.append(i ? "," : "").append(names[i]);
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
  m.def("cpu_prepack(Tensor w1, Tensor w2, ScalarType dtype) -> Tensor");
  m.def(
      "cpu_forward_prepacked(Tensor x, Tensor buffer, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? scale, "
      "Tensor? row_scale, Tensor? residual, str activation, bool skip, float alpha, ScalarType dtype) -> (Tensor, "
      "bool)");
  m.def("cpu_isa() -> str");
  m.def("cpu_isas() -> str");
  m.def("cpu_set_isa(str name) -> str");
  m.def("cpu_peak(str dtype, int threads, float seconds) -> float");
}

STABLE_TORCH_LIBRARY_IMPL(aim_fast, CPU, m) {
  m.impl("adapter_forward", TORCH_BOX(&aim_fast::forward_cpu));
  m.impl("adapter_backward", TORCH_BOX(&aim_fast::backward_cpu));
  m.impl("cpu_prepack", TORCH_BOX(&aim_fast::prepack_weights));
  m.impl("cpu_forward_prepacked", TORCH_BOX(&aim_fast::forward_prepacked));
}

STABLE_TORCH_LIBRARY_IMPL(aim_fast, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&aim_fast::isa));
  m.impl("cpu_isas", TORCH_BOX(&aim_fast::isas));
  m.impl("cpu_set_isa", TORCH_BOX(&aim_fast::set_isa));
  m.impl("cpu_peak", TORCH_BOX(&aim_fast::peak));
}
