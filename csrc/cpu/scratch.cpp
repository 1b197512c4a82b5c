#include "scratch.h"

#include <cstdlib>
#include <new>

namespace aim_fast {
namespace {

struct Buffer {
  char* data = nullptr;
  size_t size = 0;
  ~Buffer() { std::free(data); }
};

}  // namespace

char* scratch(Scratch which, size_t bytes) {
  static thread_local Buffer buffers[2];
  Buffer& buffer = buffers[static_cast<int>(which)];
  if (bytes > buffer.size) {
    std::free(buffer.data);
    buffer.size = 0;
    size_t rounded = (bytes + 4095) / 4096 * 4096;
    buffer.data = static_cast<char*>(std::aligned_alloc(64, rounded));
    if (!buffer.data) throw std::bad_alloc();
    buffer.size = rounded;
  }
  return buffer.data;
}

}  // namespace aim_fast
