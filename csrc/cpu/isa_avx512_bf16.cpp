#define AIM_FAST_ISA avx512_bf16
#define AIM_FAST_VECTOR_BYTES 64
#include "isa.h"

namespace aim_fast {
extern const Kernels kernels_avx512_bf16{"avx512_bf16",         avx512_bf16::forward,
                                         avx512_bf16::backward, avx512_bf16::packed_bytes,
                                         avx512_bf16::pack,     avx512_bf16::peak};
}  // namespace aim_fast
