// Floats as sums of bfloat16, for products of fp32 and fp16 on tiles that multiply bfloat16 alone.
//
//     v = v0 + v1 [+ v2]     v0: the upper half of v's bits; v1: what is left, rounded; v2: what is left then
//
// Exact      three parts hold every float, 3 x 8 bits; two parts every half float, 11 of 16 bits; of dz,
//            which nobody rounds to fp16, they hold 16 bits
// Products   all of a_i b_j with i + j < 3, summed in fp32: what is left out is under 2^-22 |a b|, of either sign, and
//            2^-25 on the average; a product in fp32 is rounded by 2^-24
// Range      NaN and inf are v0 alone: a sum that meets inf may be NaN (inf times a part that is zero or of the other
//            sign), so rows of z and y without a finite sum are done again in float (mend.h). The tiles take for
//            zero what is under 2^-126: values and products under 2^-103 lose bits.
// Source     Henry, Tang, Heinecke: Leveraging the bfloat16 artificial intelligence datatype for higher-precision
//            computations (2019)
#pragma once

#include "gemm.h"

namespace aim_fast::AIM_FAST_ISA {

template <int kCount>
struct SplitOperand {
  using Unit = uint32_t;
  using Storage = BFloat16;
  using Vec = Uint;
  static constexpr int kPerUnit = 2;
  static constexpr int kParts = kCount;
  using Units = Parts<Vec, kParts>;

  static constexpr bool kRounds = false;
  static constexpr bool holds(Dtype dtype) { return kParts == 3 || dtype != Dtype::kFloat32; }

  static AIM_FAST_INLINE Units from_floats(const float* p) { return from_row<Float32>(p, Dtype::kFloat32); }
  template <class S>
  static AIM_FAST_INLINE Units from_row(const typename S::Element* p, Dtype round_to) {
    const auto first = split(rounded(S::load(p), round_to)), second = split(rounded(S::load(p + kLanes), round_to));
    Units units;
    for (int i = 0; i < kParts; ++i) {
      units.part[i] = (Vec)_mm512_permutex2var_epi16((__m512i)first.part[i], upper_halves(), (__m512i)second.part[i]);
    }
    return units;
  }
  template <class S>
  static AIM_FAST_INLINE Units from_pair(const typename S::Element* even, const typename S::Element* odd,
                                         Dtype round_to) {
    return pair(rounded(S::load(even), round_to), rounded(S::load(odd), round_to));
  }
  static AIM_FAST_INLINE Units pair_floats(const float* even, const float* odd) {
    return pair(load_vector<Float>(even), load_vector<Float>(odd));
  }
  static AIM_FAST_INLINE Units pair(Float even, Float odd) { return pair_parts(split(even), split(odd)); }

 private:
  static constexpr uint32_t kUpper = 0xffff0000;

  // The parts, each in the upper halves of the lanes; what the lower ones hold counts for nothing.
  static AIM_FAST_INLINE Parts<Uint, kParts> split(Float v) {
    Parts<Uint, kParts> parts;
    parts.part[0] = (Uint)v & kUpper;
    Float rest = v - (Float)parts.part[0];
    rest = rest == rest ? rest : Float{};  // inf - inf
    const Uint second = (Uint)rest + 0x8000;
    parts.part[1] = second;
    if constexpr (kParts == 3) parts.part[2] = (Uint)(rest - (Float)(second & kUpper));
    return parts;
  }

  static AIM_FAST_INLINE Units pair_parts(const Parts<Uint, kParts>& even, const Parts<Uint, kParts>& odd) {
    Units units;
    for (int i = 0; i < kParts; ++i) units.part[i] = (odd.part[i] & kUpper) | (even.part[i] >> 16);
    return units;
  }

  // The upper halves of two vectors' lanes, one vector after the other.
  static AIM_FAST_INLINE __m512i upper_halves() {
    alignas(64) static constexpr uint16_t kPlaces[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                         23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                         45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    return _mm512_load_si512(kPlaces);
  }
};

}  // namespace aim_fast::AIM_FAST_ISA
