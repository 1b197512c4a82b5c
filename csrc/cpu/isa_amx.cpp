// Products of bfloat16 on the tiles of AMX; whatever else is asked for is AVX-512's.
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define AIM_FAST_ISA amx
#define AIM_FAST_VECTOR_BYTES 64
#define AIM_FAST_AMX
#include "backward.h"
#include "forward.h"
#include "kernels.h"

namespace aim_fast {

extern const Kernels kernels_avx512_bf16;

namespace amx {

inline void forward(const ForwardParams& p) {
  if (p.dtype != Dtype::kBFloat16) return kernels_avx512_bf16.forward(p);
  Forward<BFloat16Operand>(p).run();
}

inline int64_t packed_bytes(const ForwardParams& p) {
  if (p.dtype != Dtype::kBFloat16) return kernels_avx512_bf16.packed_bytes(p);
  return Forward<BFloat16Operand>(p).packed_bytes();
}

inline void pack(const ForwardParams& p, char* out) {
  if (p.dtype != Dtype::kBFloat16) return kernels_avx512_bf16.pack(p, out);
  Forward<BFloat16Operand>(p).pack(out);
}

inline void backward(const BackwardParams& p) {
  if (p.dtype != Dtype::kBFloat16) return kernels_avx512_bf16.backward(p);
  Backward<BFloat16Operand>(p).run();
}

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
