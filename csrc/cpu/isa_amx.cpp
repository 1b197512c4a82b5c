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

inline void forward(const ForwardParams& p) {
  with_operand(p.dtype, [&](auto operand) { Forward<decltype(operand)>(p).run(); });
}

inline int64_t packed_bytes(const ForwardParams& p) {
  return with_operand(p.dtype, [&](auto operand) { return Forward<decltype(operand)>(p).packed_bytes(); });
}

inline void pack(const ForwardParams& p, char* out) {
  with_operand(p.dtype, [&](auto operand) { Forward<decltype(operand)>(p).pack(out); });
}

inline void backward(const BackwardParams& p) {
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
