// The table of kernels.h for products in tiles, on any architecture: in fp32, and for few rows in 16 bits.
#include "cuda/kernels.h"
#include "cuda/tiles/columns.h"
#include "cuda/tiles/rows.h"

namespace aim_fast::cuda {
namespace tiles {
namespace {

bool takes_rows(const Rows& rows, int64_t) { return begins_on_vectors(rows); }

int plans(const Problem& p, const Device&, bool) {
  const int64_t vector = 16 / element_size(p.dtype);
  return p.D % vector == 0 && p.H % vector == 0 ? kPlans : 0;
}

}  // namespace
}  // namespace tiles

const Kernels tiles_kernels = {tiles::takes_rows, tiles::plans,           true, tiles::forward, tiles::backward_rows,
                               tiles::splits,     tiles::backward_columns};

}  // namespace aim_fast::cuda
