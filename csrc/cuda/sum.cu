#include "cuda/sum.h"

namespace aim_fast::cuda {

int sum_partials(const BackwardParams&, const Intermediates&, const Device&) { return 1; }

}  // namespace aim_fast::cuda
