// Tile registers of AMX, which multiply whole matrices of bfloat16; of other instruction sets there are none.
//
// Intel Architecture Software Developer's Manual, volume 1, chapter "Programming with Intel AMX". Spelled out, for
// compilers that do not know the instructions, and for the clobbers of memory that gcc 12's intrinsics lack.
#pragma once

#include "vec.h"

namespace aim_fast::AIM_FAST_ISA {

#if defined(AIM_FAST_AMX)

constexpr bool kMatrixTiles = true;

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
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~Matrix() { asm volatile("tilerelease"); }
  Matrix(const Matrix&) = delete;
  Matrix& operator=(const Matrix&) = delete;

  // Sums [16 kDown, 32] in tiles 0 to 2 kDown - 1; there is one such object at a time. Strides are in elements.
  template <int kDown>
  struct Sums {
    void zero() const {
      clear<0>();
      clear<1>();
      if constexpr (kDown > 1) {
        clear<2>();
        clear<3>();
      }
    }
    void store(float* c, int64_t stride) const {
      drain<0>(c, stride);
      drain<1>(c + 16, stride);
      if constexpr (kDown > 1) {
        drain<2>(c + 16 * stride, stride);
        drain<3>(c + 16 * stride + 16, stride);
      }
    }
    // The products alone, of whatever is in the operands' tiles.
    void multiply() const {
      product<0, 4, 6>();
      product<1, 4, 7>();
      if constexpr (kDown > 1) {
        product<2, 5, 6>();
        product<3, 5, 7>();
      }
    }
    // += a b, a [16 kDown, 16] and b [16, 32] of units of two along the summed dimension, each the sum of kParts parts
    // that lie a_part and b_part apart. Parts i and j are multiplied where i + j < 3, in an order that fills few tiles.
    template <int kParts>
    void multiply(const uint32_t* a, int64_t a_stride, int64_t a_part, const uint32_t* b, int64_t b_stride,
                  int64_t b_part) const {
      const auto left = [&](int part) {
        fill<4>(a + part * a_part, a_stride);
        if constexpr (kDown > 1) fill<5>(a + part * a_part + 16 * a_stride, a_stride);
      };
      const auto right = [&](int part) {
        fill<6>(b + part * b_part, b_stride);
        fill<7>(b + part * b_part + 16, b_stride);
      };
      left(0);
      for (int part = kParts - 1; part >= 0; --part) right(part), multiply();
      for (int part = kParts - 1; part > 0; --part) left(part), multiply();
      if constexpr (kParts > 1) right(1), multiply();
    }

   private:
    template <int kTile>
    static void clear() {
      asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
    }
    template <int kTile, class T>
    static void fill(const T* from, int64_t stride) {
      asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride * 4), "i"(kTile) : "memory");
    }
    template <int kTile>
    static void drain(float* to, int64_t stride) {
      asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride * 4), "i"(kTile) : "memory");
    }
    template <int kSum, int kA, int kB>
    static void product() {
      asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kA), "i"(kB));
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
