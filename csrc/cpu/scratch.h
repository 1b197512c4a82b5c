// Per-thread working memory that outlives a call: grown when a call needs more, so that a steady workload allocates
// nothing.
#pragma once

#include <cstddef>

namespace aim_fast {

// What a thread keeps apart: packed weights and sums of the call it makes, and the blocks it works on.
enum class Scratch { kCall, kBlock };

// At least `bytes`, aligned to 64, undefined content; valid until this thread asks again for the same one.
// Throws std::bad_alloc.
char* scratch(Scratch which, size_t bytes);

// Lays parts one after the other: add() each, then allocate, then at() gives their places.
class Layout {
 public:
  size_t add(size_t bytes) {
    size_t at = size_;
    size_ += (bytes + 63) / 64 * 64;
    return at;
  }
  size_t size() const { return size_; }

 private:
  size_t size_ = 0;
};

}  // namespace aim_fast
