// Products on the tiles of AMX: of bfloat16, and of other floats as sums of bfloat16.
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define AIM_FAST_ISA amx
#define AIM_FAST_VECTOR_BYTES 64
#define AIM_FAST_AMX
#include "backward.h"
#include "forward.h"
#include "kernels.h"
#include "split.h"

namespace aim_fast {

extern const Kernels kernels_avx512_bf16;

namespace amx {

// Calls f with the operands of products in a dtype.
template <class F>
auto with_operand(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::kFloat32:
      return f(SplitOperand<3>{});
    case Dtype::kFloat16:
      return f(SplitOperand<2>{});
    case Dtype::kBFloat16:
      break;
  }
  return f(BFloat16Operand{});
}

// Whether some hundred rows of floats are multiplied as such: three parts of each take longer to pack, and the tiles'
// rate is the first to fall where others use the core. Measured: Xeon (Emerald Rapids), M = 197, D = 768, H = 192, x
// eager, tiles and floats: quiet, two threads, forward 1.08 and 1.04, train step 1.10 and 1.02; one thread, 1.25 and
// 1.08, 1.22 and 1.09; beside others 0.82 and 1.01, 0.88 and 1.00; 0.79 and 0.97, 0.75 and 0.93.
inline bool as_floats(const Problem& p, int64_t M) {
  constexpr int64_t kBytes = sizeof(float);
  return p.dtype == Dtype::kFloat32 && M <= kMaxPanelRows && M * p.D * kBytes <= kMaxPanelBytes;
}

inline void forward(const ForwardParams& p) {
  if (as_floats(p, p.M)) return kernels_avx512_bf16.forward(p);
  ForwardParams call = p;
  if (p.dtype == Dtype::kFloat32) call.packed = nullptr;  // packed for calls of fewer rows
  with_operand(p.dtype, [&](auto operand) { Forward<decltype(operand)>(call).run(); });
}

// What is packed before a call serves few rows.
inline int64_t packed_bytes(const ForwardParams& p) {
  if (p.dtype == Dtype::kFloat32) return kernels_avx512_bf16.packed_bytes(p);
  return with_operand(p.dtype, [&](auto operand) { return Forward<decltype(operand)>(p).packed_bytes(); });
}

inline void pack(const ForwardParams& p, char* out) {
  if (p.dtype == Dtype::kFloat32) return kernels_avx512_bf16.pack(p, out);
  with_operand(p.dtype, [&](auto operand) { Forward<decltype(operand)>(p).pack(out); });
}

inline void backward(const BackwardParams& p) {
  if (as_floats(p, p.M)) return kernels_avx512_bf16.backward(p);
  with_operand(p.dtype, [&](auto operand) { Backward<decltype(operand)>(p).run(); });
}

// The peak of fp32 is that of its own instruction, which sums of bfloat16 pass.
inline int64_t peak(Dtype dtype, int64_t rounds) {
  if (dtype != Dtype::kBFloat16) return kernels_avx512_bf16.peak(dtype, rounds);
  const Matrix matrix;
  const Matrix::Sums<2> sums;
  sums.zero();
  for (int64_t i = 0; i < rounds; ++i) sums.multiply();
  return rounds * kMR * kNR * kUnits * BFloat16Operand::kPerUnit * 2;
}

}  // namespace amx

// The processor's word for tiles and bfloat16, and Linux's for their state, which a process has to ask for.
bool has_amx() {
#if defined(__linux__)
  unsigned a, b, c, d;
  constexpr unsigned kBFloat16 = 1u << 22, kTiles = 1u << 24;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (kBFloat16 | kTiles)) != (kBFloat16 | kTiles)) return false;
  constexpr long kRequestState = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestState, kTileData) == 0;
#else
  return false;
#endif
}

extern const Kernels kernels_amx{"amx", amx::forward, amx::backward, amx::packed_bytes, amx::pack, amx::peak};

}  // namespace aim_fast
