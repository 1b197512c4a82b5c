#define AIM_FAST_ISA portable
#define AIM_FAST_VECTOR_BYTES 16
#include "isa.h"

namespace aim_fast {
extern const Kernels kernels_portable{"portable",     portable::forward, portable::backward, portable::packed_bytes,
                                      portable::pack, portable::peak};
}  // namespace aim_fast
