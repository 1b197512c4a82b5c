#include "prepacked.h"

#include <cstring>

namespace aim_fast {
namespace {

struct Header {
  char isa[16];
  int64_t D, H;
  uint64_t fingerprint;
  Dtype dtype;
};
constexpr int64_t kHeaderBytes = 64;  // keeps the panels aligned
static_assert(sizeof(Header) <= kHeaderBytes);

// Of 64 elements spread over a weight of n: what changes the whole of it changes them too. FNV-1a.
uint64_t fingerprint(const Array& w, int64_t n, uint64_t hash) {
  constexpr int64_t kSamples = 64;
  const int64_t size = element_size(w.dtype), step = n < kSamples ? 1 : n / kSamples;
  for (int64_t i = 0; i < n; i += step) {
    uint32_t bits = 0;
    std::memcpy(&bits, w.data + i * size, size);
    hash = (hash ^ bits) * 0x100000001b3;
  }
  return hash;
}

Header header_of(const ForwardParams& p) {
  Header header;
  std::memset(&header, 0, sizeof header);  // padding too, since headers are compared as bytes
  std::strncpy(header.isa, kernels().name, sizeof header.isa - 1);
  header.D = p.D, header.H = p.H;
  header.fingerprint = fingerprint(p.w2, p.D * p.H, fingerprint(p.w1, p.D * p.H, 0xcbf29ce484222325));
  header.dtype = p.dtype;
  return header;
}

}  // namespace

int64_t prepacked_bytes(const ForwardParams& p) { return kHeaderBytes + kernels().packed_bytes(p); }

void prepack(const ForwardParams& p, char* buffer) {
  const Header header = header_of(p);
  std::memcpy(buffer, &header, sizeof header);
  kernels().pack(p, buffer + kHeaderBytes);
}

const char* prepacked_panels(const ForwardParams& p, const char* buffer, int64_t bytes) {
  const Header header = header_of(p);
  const bool fits = bytes == prepacked_bytes(p) && std::memcmp(buffer, &header, sizeof header) == 0;
  return fits ? buffer + kHeaderBytes : nullptr;
}

}  // namespace aim_fast
