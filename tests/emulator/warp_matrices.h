// ldmatrix, stmatrix and mma.sync: matrices spread over the lanes of a warp.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#if defined(__AVX2__) && defined(__F16C__)
#include <immintrin.h>
#endif

#include <type_traits>

#include "barriers.h"

namespace emu {

// One element of type T, of 16 bits.
template <class T>
float widen(uint16_t bits) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    const uint32_t upper = uint32_t{bits} << 16;
    float value;
    memcpy(&value, &upper, 4);
    return value;
  } else {
    __half half;
    memcpy(&half, &bits, 2);
    return __half2float(half);
  }
}

// Eight of them.
template <class T>
void widen8(const uint8_t* from, float* to) {
#if defined(__AVX2__) && defined(__F16C__)
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    _mm256_storeu_ps(to, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)));
  } else {
    _mm256_storeu_ps(to, _mm256_cvtph_ps(bits));
  }
#else
  for (int i = 0; i < 8; ++i) {
    uint16_t bits;
    memcpy(&bits, from + 2 * i, 2);
    to[i] = widen<T>(bits);
  }
#endif
}

struct MatrixRow {
  uint32_t* registers;
  uint8_t* row;
};

inline MatrixRow matrix_row(uint32_t* registers, const void* row, const char* who) {
  if (reinterpret_cast<uintptr_t>(row) % 16) fail(std::string(who) + ": a row is not aligned to 16 bytes");
  return {registers, static_cast<uint8_t*>(const_cast<void*>(row))};
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, bool transposed) {
  const char* who = transposed ? "ldmatrix.trans" : "ldmatrix";
  MatrixRow mine = matrix_row(r, row, who);
  const SharedMemory& shared = *current->cta->shared;
  if (shared.holds(row)) shared.read(shared.offset(row), 16, who);
  warp_collective(who, &mine, [&](void** lanes, unsigned) {
    const auto of = [&](int lane) { return static_cast<MatrixRow*>(lanes[lane]); };
    for (int matrix = 0; matrix < 4; ++matrix) {
      for (int lane = 0; lane < 32; ++lane) {
        uint32_t* to = &of(lane)->registers[matrix];
        if (!transposed) {
          memcpy(to, of(8 * matrix + lane / 4)->row + lane % 4 * 4, 4);
          continue;
        }
        for (int half = 0; half < 2; ++half) {
          const uint8_t* from = of(8 * matrix + lane % 4 * 2 + half)->row + lane / 4 * 2;
          memcpy(reinterpret_cast<uint8_t*>(to) + 2 * half, from, 2);
        }
      }
    }
  });
}

inline void stmatrix_x4(void* row, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
  uint32_t r[4] = {r0, r1, r2, r3};
  MatrixRow mine = matrix_row(r, row, "stmatrix");
  SharedMemory& shared = *current->cta->shared;
  if (shared.holds(row)) shared.write(shared.offset(row), 16, current->index, "stmatrix");
  warp_collective("stmatrix", &mine, [](void** lanes, unsigned) {
    const auto of = [&](int lane) { return static_cast<MatrixRow*>(lanes[lane]); };
    for (int matrix = 0; matrix < 4; ++matrix) {
      for (int lane = 0; lane < 32; ++lane) {
        memcpy(of(8 * matrix + lane / 4)->row + lane % 4 * 4, &of(lane)->registers[matrix], 4);
      }
    }
  });
}

template <class T>
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Fragments {
    float* d;
    uint32_t ab[6];
  } mine{d, {a[0], a[1], a[2], a[3], b0, b1}};
  warp_collective("mma", &mine, [](void** lanes, unsigned) {
    float left[16][16], right[16][8], product[16][8] = {};
    for (int lane = 0; lane < 32; ++lane) {
      const Fragments& of = *static_cast<Fragments*>(lanes[lane]);
      alignas(32) uint32_t pairs[8] = {of.ab[0], of.ab[1], of.ab[2], of.ab[3], of.ab[4], of.ab[5]};
      float values[16];
      widen8<T>(reinterpret_cast<const uint8_t*>(pairs), values);
      widen8<T>(reinterpret_cast<const uint8_t*>(pairs) + 16, values + 8);
      const int row = lane / 4, column = lane % 4 * 2;
      for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 4; ++i) left[row + i % 2 * 8][column + half + i / 2 * 8] = values[2 * i + half];
        for (int i = 0; i < 2; ++i) right[column + half + i * 8][row] = values[8 + 2 * i + half];
      }
    }
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < 16; ++k) {
        for (int column = 0; column < 8; ++column) product[row][column] += left[row][k] * right[k][column];
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      float* d = static_cast<Fragments*>(lanes[lane])->d;
      for (int i = 0; i < 4; ++i) d[i] += product[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    }
  });
}

}  // namespace emu
