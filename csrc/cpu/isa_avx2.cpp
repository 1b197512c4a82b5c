#define AIM_FAST_ISA avx2
#define AIM_FAST_VECTOR_BYTES 32
#include "isa.h"

namespace aim_fast {
extern const Kernels kernels_avx2{"avx2", avx2::forward, avx2::backward, avx2::packed_bytes, avx2::pack, avx2::peak};
}  // namespace aim_fast
