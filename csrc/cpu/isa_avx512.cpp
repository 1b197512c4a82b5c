#define AIM_FAST_ISA avx512
#define AIM_FAST_VECTOR_BYTES 64
#include "isa.h"

namespace aim_fast {
extern const Kernels kernels_avx512{"avx512",     avx512::forward, avx512::backward, avx512::packed_bytes,
                                    avx512::pack, avx512::peak};
}  // namespace aim_fast
