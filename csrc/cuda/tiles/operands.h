// What a tile product reads: the operands as they lie in memory, and their parts of a slot in shared memory.
#pragma once

#include "cuda/ptx.h"
#include "cuda/rows.h"

namespace aim_fast::cuda::tiles {

constexpr int kThreads = 256;
constexpr int kFour = 4;  // neighbours in a row of a product, which a thread takes at once; floats in 16 bytes
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

AIM_NOINLINE char* strided_row(const DeviceRows& rows, uint32_t m) { return rows.row(m); }
// Most rows have one stride. The others take a call, to keep the code of each use short: a call on few rows runs it
// once and may find none of it in the caches.
AIM_DEVICE char* row_of(const DeviceRows& rows, int64_t m) {
  return rows.dims <= 1 ? rows.data + m * rows.stride[0] : strided_row(rows, static_cast<uint32_t>(m));
}

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
  static constexpr int kLinesAtOnce = kThreads / kVectorsOfLine;  // a thread's vectors are so many lines apart
  static_assert(kVectors * kThreads == kCount * kVectorsOfLine && kThreads % kVectorsOfLine == 0);
  static_assert(kPad % kVector<T> == 0);

  // What a thread copies of the operand, for the rows of A or columns of B from `first` on.
  class Source {
   public:
    AIM_DEVICE Source(const Operand& operand, int64_t first)
        : lines_(operand.lines),
          line_(threadIdx.x / kVectorsOfLine),
          place_(threadIdx.x % kVectorsOfLine * kVector<T>) {
      if constexpr (kAlong) {
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
          const int64_t line = first + line_ + i * kLinesAtOnce;
          from_[i] = line < operand.count ? bytes(row_of(lines_, line), place_) : nullptr;
        }
      } else {
        from_[0] = first + place_ < operand.length ? bytes(lines_.data, first + place_) : nullptr;
      }
    }

    // Issues the loads of a step that begins at this depth; zeros beyond the matrix and from `end` on.
    AIM_DEVICE void fill(T* slot, int64_t depth, int64_t end) const {
      T* to = slot + line_ * kPitch + place_;
      if constexpr (kAlong) {
        const bool within = depth + place_ < end;
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
          const bool inside = from_[i] && within;
          ptx::cp_async_16(to + i * kLinesAtOnce * kPitch, inside ? bytes(from_[i], depth) : lines_.data, inside);
        }
      } else if (lines_.dims <= 1) {
        const char* from = from_[0] + (depth + line_) * lines_.stride[0];
        const int left = from_[0] ? static_cast<int>(std::min<int64_t>(end - depth, kDepth)) - line_ : 0;
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
          const bool inside = i * kLinesAtOnce < left;
          ptx::cp_async_16(to + i * kLinesAtOnce * kPitch, inside ? from : lines_.data, inside);
          from += kLinesAtOnce * lines_.stride[0];
        }
      } else {
#pragma unroll 1
        for (int i = 0; i < kVectors; ++i) {
          const int64_t line = depth + line_ + i * kLinesAtOnce;
          const bool inside = from_[0] && line < end;
          const char* from = inside ? row_of(lines_, line) + (from_[0] - lines_.data) : lines_.data;
          ptx::cp_async_16(to + i * kLinesAtOnce * kPitch, from, inside);
        }
      }
    }

   private:
    AIM_DEVICE static const char* bytes(const char* p, int64_t elements) { return p + elements * int64_t{sizeof(T)}; }

    const DeviceRows& lines_;
    const int line_, place_;                   // of the first of its vectors
    const char* from_[kAlong ? kVectors : 1];  // where its lines begin; or its place in the first line; null beyond
  };
};

}  // namespace aim_fast::cuda::tiles
