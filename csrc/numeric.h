// Numbers for vector code: bfloat16, and functions that compilers can vectorise because they have no branch and no call.
//
// How a kernel becomes vector code for the machine it runs on: its row loops are always-inlined templates, called from
// plain functions marked ELECTRA_FAST_CLONES (philox.h), one for each combination of types. Sums over a row carry
// `#pragma omp simd reduction(+ : ...)`, since without -ffast-math a compiler must add in order. The pragma is all that
// -fopenmp-simd turns on: no OpenMP runtime is linked.
#pragma once

#include <cstdint>
#include <cstring>

#include "philox.h"

namespace electra_fast {

struct bfloat16 {
  std::uint16_t bits;
};

ELECTRA_FAST_INLINE std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

ELECTRA_FAST_INLINE float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

ELECTRA_FAST_INLINE float load(const float* address) { return *address; }
ELECTRA_FAST_INLINE float load(const bfloat16* address) { return float_of(std::uint32_t{address->bits} << 16); }

ELECTRA_FAST_INLINE void store(float* address, float value) { *address = value; }
ELECTRA_FAST_INLINE void store(bfloat16* address, float value) {
  // To nearest, ties to even; a NaN would become an infinity by the addition.
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  address->bits = static_cast<std::uint16_t>(value != value ? 0x7FC0 : rounded);
}

// e^x = p * 2^n for x in [-88, 89]: p lies in [0.7, 1.5], n in the low bits of `shifted`.
struct Exponential {
  float p, shifted;
};
ELECTRA_FAST_INLINE Exponential split_exp(float x) {
  const float shifter = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = x * 1.44269504F + shifter;
  const float n = shifted - shifter;
  float r = x - n * 0.693145752F;  // ln 2 in two parts
  r -= n * 1.42860677e-6F;
  float p = 1.98756912e-4F;
  p = p * r + 1.39819994e-3F;
  p = p * r + 8.33345205e-3F;
  p = p * r + 4.16657962e-2F;
  p = p * r + 1.66666657e-1F;
  p = p * r + 0.5F;
  return {p * r * r + r + 1.0F, shifted};
}

// e^x to 1.2e-7 of its value; 0 below -87.3 and finite up to 88.7, infinity above, NaN for NaN.
ELECTRA_FAST_INLINE float exp(float x) {
  const Exponential e = split_exp(x < -87.3F ? -87.3F : (x > 88.7F ? 88.7F : x));
  // 2^n in two factors: n = 128 has no float of its own.
  const std::int32_t exponent = static_cast<std::int32_t>(bits_of(e.shifted)) - 0x4B400000;
  const std::int32_t half = exponent >> 1;
  const float scale0 = float_of(static_cast<std::uint32_t>(half + 127) << 23);
  const float scale1 = float_of(static_cast<std::uint32_t>(exponent - half + 127) << 23);
  const float value = e.p * scale0 * scale1;
  const float low = x < -87.3F ? 0.0F : value;
  const float high = x > 88.7F ? float_of(0x7F800000) : low;
  return x != x ? x : high;
}

// The same for x <= 0, and up to 88, in half the instructions: what softmaxes need. 0 below -86, NaN for NaN.
ELECTRA_FAST_INLINE float exp_nonpositive(float x) {
  const Exponential e = split_exp(-86.0F > x ? -86.0F : x);
  const float value = float_of(bits_of(e.p) + (bits_of(e.shifted) << 23));  // n added to its exponent
  return x < -86.0F ? 0.0F : value;
}

}  // namespace electra_fast
