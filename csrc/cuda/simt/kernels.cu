// The table of kernels.h for products in fp32, on any architecture.
#include "cuda/kernels.h"
#include "cuda/simt/columns.h"
#include "cuda/simt/rows.h"

namespace aim_fast::cuda {
namespace simt {
namespace {

bool takes_rows(const Rows& rows, int64_t) { return begins_on_vectors(rows); }

int plans(const Problem& p, const Device&, bool) {
  const bool taken = p.dtype == Dtype::kFloat32 && p.D % kVector == 0 && p.H % kVector == 0;
  return taken ? kTiles : 0;
}

}  // namespace
}  // namespace simt

const Kernels simt_kernels = {simt::takes_rows, simt::plans,           true, simt::forward, simt::backward_rows,
                              simt::splits,     simt::backward_columns};

}  // namespace aim_fast::cuda
