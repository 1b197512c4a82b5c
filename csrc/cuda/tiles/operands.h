// What a tile product reads: the operands as they lie in memory, and their parts of a slot in shared memory.
#pragma once

#include "cuda/ptx.h"
#include "cuda/rows.h"

namespace aim_fast::cuda::tiles {

constexpr int kThreads = 256;
constexpr int kCtas = 2;  // of a multiprocessor, that registers must leave room for
template <class T>
constexpr int kVector = 16 / sizeof(T);  // elements in 16 bytes

// What a line of an operand holds, as it lies in memory: all of the depth for one row of A or column of B; or for one
// place in the depth all rows of A or columns of B.
enum class Lines { kAlongDepth, kAcrossDepth };

// Lines of unit stride, on 16 bytes each, of a length that is a multiple of 16 bytes.
struct Operand {
  DeviceRows lines;
  int64_t count, length;
};

// The part of the depth that a product sums over.
struct Depth {
  int64_t begin, end;
};

// One operand's part of a slot: kTile rows of A or columns of B by kDepth, with kPad elements after each line.
template <class T, Lines kLines, int kTile, int kDepth, int kPad>
struct Side {
  static constexpr bool kAlong = kLines == Lines::kAlongDepth;
  static constexpr int kCount = kAlong ? kTile : kDepth, kLength = kAlong ? kDepth : kTile;
  static constexpr int kPitch = kLength + kPad;
  static constexpr int kElements = kCount * kPitch;
  static constexpr int kVectorsOfLine = kLength / kVector<T>, kVectors = kCount * kVectorsOfLine / kThreads;
  static_assert(kVectors * kThreads == kCount * kVectorsOfLine && kPad % kVector<T> == 0);

  // Issues the loads of a step, for the rows of A or columns of B from `first` on; zeros beyond the matrix.
  AIM_DEVICE static void fill(T* slot, const Operand& operand, int64_t first, int64_t depth, int64_t end) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int at = static_cast<int>(threadIdx.x) + i * kThreads;
      const int line = at / kVectorsOfLine, place = at % kVectorsOfLine * kVector<T>;
      const int64_t from_line = (kAlong ? first : depth) + line, from_place = (kAlong ? depth : first) + place;
      const bool inside =
          kAlong ? from_line < operand.count && from_place < end : from_line < end && from_place < operand.length;
      const char* from = operand.lines.row(inside ? static_cast<uint32_t>(from_line) : 0);
      ptx::cp_async_16(slot + line * kPitch + place, from + (inside ? from_place * int64_t{sizeof(T)} : 0), inside);
    }
  }
};

}  // namespace aim_fast::cuda::tiles
