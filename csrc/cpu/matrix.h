// Tile registers of AMX, which multiply whole matrices of bfloat16; of other instruction sets there are none.
//
// Intel Architecture Software Developer's Manual, volume 1, chapter "Programming with Intel AMX". Spelled out, for
// compilers that do not know the instructions, and for the clobbers of memory that gcc 12's intrinsics lack.
#pragma once

#include "vec.h"

#if defined(AIM_FAST_AMX) && defined(AIM_FAST_EMULATED)
#include "amx.h"  // of tests/emulator
#endif

namespace aim_fast::AIM_FAST_ISA {

#if defined(AIM_FAST_AMX)

constexpr bool kMatrixTiles = true;

// The instructions. Tiles have numbers; strides are in elements of four bytes.
#if defined(AIM_FAST_EMULATED)
namespace tiles = emulated_amx;
#else
namespace tiles {

template <class Config>
AIM_FAST_INLINE void configure(const Config& config) {
  asm volatile("ldtilecfg %0" ::"m"(config));
}
AIM_FAST_INLINE void release() { asm volatile("tilerelease"); }
template <int kTile>
AIM_FAST_INLINE void clear() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kTile>
AIM_FAST_INLINE void load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride * 4), "i"(kTile) : "memory");
}
template <int kTile>
AIM_FAST_INLINE void store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride * 4), "i"(kTile) : "memory");
}
template <int kSum, int kA, int kB>
AIM_FAST_INLINE void multiply_add() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kA), "i"(kB));
}

}  // namespace tiles
#endif

// While one lives its thread may use the tiles: eight of 16 rows of 64 bytes.
class Matrix {
 public:
  static constexpr int kRows = 16;

  Matrix() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {kRows, kRows, kRows, kRows, kRows, kRows, kRows, kRows};
    } config;
    tiles::configure(config);
  }
  ~Matrix() { tiles::release(); }
  Matrix(const Matrix&) = delete;
  Matrix& operator=(const Matrix&) = delete;

  // Sums [16 kDown, 32] in tiles 0 to 2 kDown - 1; there is one such object at a time. Strides are in elements.
  template <int kDown>
  struct Sums {
    void zero() const {
      tiles::clear<0>();
      tiles::clear<1>();
      if constexpr (kDown > 1) {
        tiles::clear<2>();
        tiles::clear<3>();
      }
    }
    void store(float* c, int64_t stride) const {
      tiles::store<0>(c, stride);
      tiles::store<1>(c + 16, stride);
      if constexpr (kDown > 1) {
        tiles::store<2>(c + 16 * stride, stride);
        tiles::store<3>(c + 16 * stride + 16, stride);
      }
    }
    // The products alone, of whatever is in the operands' tiles.
    void multiply() const {
      tiles::multiply_add<0, 4, 6>();
      tiles::multiply_add<1, 4, 7>();
      if constexpr (kDown > 1) {
        tiles::multiply_add<2, 5, 6>();
        tiles::multiply_add<3, 5, 7>();
      }
    }
    // += a b, a [16 kDown, 16] and b [16, 32] of units of two along the summed dimension, each the sum of kParts parts
    // that lie a_part and b_part apart. Parts i and j are multiplied where i + j < 3, in an order that fills few tiles.
    template <int kParts>
    void multiply(const uint32_t* a, int64_t a_stride, int64_t a_part, const uint32_t* b, int64_t b_stride,
                  int64_t b_part) const {
      const auto left = [&](int part) {
        tiles::load<4>(a + part * a_part, a_stride);
        if constexpr (kDown > 1) tiles::load<5>(a + part * a_part + 16 * a_stride, a_stride);
      };
      const auto right = [&](int part) {
        tiles::load<6>(b + part * b_part, b_stride);
        tiles::load<7>(b + part * b_part + 16, b_stride);
      };
      left(0);
      for (int part = kParts - 1; part >= 0; --part) right(part), multiply();
      for (int part = kParts - 1; part > 0; --part) left(part), multiply();
      if constexpr (kParts > 1) right(1), multiply();
    }
  };
};

#else

constexpr bool kMatrixTiles = false;

struct Matrix {
  Matrix() {}  // not trivial: an object of it is not an unused variable
};

#endif

}  // namespace aim_fast::AIM_FAST_ISA
