// Sixteen floats that compilers keep in registers: one of AVX-512, two of AVX2, four of others.
#pragma once

#include <cstdint>
#include <cstring>

#include "numeric.h"
#include "philox.h"

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define ELECTRA_FAST_SHUFFLES
#endif
#endif

namespace electra_fast {

constexpr std::int64_t kLanes = 16;

#if defined(__GNUC__)
typedef float Lanes __attribute__((vector_size(64)));
#else
struct Lanes {
  float lane[kLanes];
  Lanes& operator+=(const Lanes& other) {
    for (std::int64_t i = 0; i < kLanes; ++i) lane[i] += other.lane[i];
    return *this;
  }
  friend Lanes operator*(float factor, Lanes lanes) {
    for (std::int64_t i = 0; i < kLanes; ++i) lanes.lane[i] *= factor;
    return lanes;
  }
};
#endif

// Sixteen numbers of either type, in float32. By reference, since passing registers of 64 bytes by value has no ABI on
// machines without them.
ELECTRA_FAST_INLINE void load_lanes(const float* from, Lanes& lanes) { std::memcpy(&lanes, from, sizeof lanes); }
ELECTRA_FAST_INLINE void store_lanes(float* to, const Lanes& lanes) { std::memcpy(to, &lanes, sizeof lanes); }

#if defined(ELECTRA_FAST_SHUFFLES)
typedef std::uint32_t Words16 __attribute__((vector_size(64)));
typedef std::uint16_t Halves16 __attribute__((vector_size(32)));

ELECTRA_FAST_INLINE void load_lanes(const bfloat16* from, Lanes& lanes) {
  Halves16 halves;
  std::memcpy(&halves, from, sizeof halves);
  lanes = (Lanes)(__builtin_convertvector(halves, Words16) << 16);
}
ELECTRA_FAST_INLINE void store_lanes(bfloat16* to, const Lanes& lanes) {
  // As `store` in numeric.h: to nearest, ties to even, and a NaN stays one.
  const Words16 bits = (Words16)lanes;
  const Words16 rounded = lanes == lanes ? (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 : Words16{} + 0x7FC0;
  const Halves16 halves = __builtin_convertvector(rounded, Halves16);
  std::memcpy(to, &halves, sizeof halves);
}
#else
ELECTRA_FAST_INLINE void load_lanes(const bfloat16* from, Lanes& lanes) {
  float values[kLanes];
  for (std::int64_t i = 0; i < kLanes; ++i) values[i] = load(from + i);
  std::memcpy(&lanes, values, sizeof lanes);
}
ELECTRA_FAST_INLINE void store_lanes(bfloat16* to, const Lanes& lanes) {
  float values[kLanes];
  std::memcpy(values, &lanes, sizeof lanes);
  for (std::int64_t i = 0; i < kLanes; ++i) store(to + i, values[i]);
}
#endif

// The first `count` numbers, at most sixteen; the other lanes are zero, or are not stored.
template <class T>
ELECTRA_FAST_INLINE void load_lanes(const T* from, std::int64_t count, Lanes& lanes) {
  if (count >= kLanes) return load_lanes(from, lanes);
  float values[kLanes] = {};
  for (std::int64_t i = 0; i < count; ++i) values[i] = load(from + i);
  std::memcpy(&lanes, values, sizeof lanes);
}
template <class T>
ELECTRA_FAST_INLINE void store_lanes(T* to, std::int64_t count, const Lanes& lanes) {
  if (count >= kLanes) return store_lanes(to, lanes);
  float values[kLanes];
  std::memcpy(values, &lanes, sizeof lanes);
  for (std::int64_t i = 0; i < count; ++i) store(to + i, values[i]);
}

// Transposes 16 x 16 floats: four times, rows i and i + 8 are woven into rows 2i and 2i + 1.
ELECTRA_FAST_INLINE void transpose_lanes(Lanes* rows) {
#if defined(ELECTRA_FAST_SHUFFLES)
  for (int round = 0; round < 4; ++round) {
    Lanes woven[kLanes];
    for (int i = 0; i < 8; ++i) {
      woven[2 * i] = __builtin_shufflevector(rows[i], rows[i + 8],  //
                                             0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      woven[2 * i + 1] = __builtin_shufflevector(rows[i], rows[i + 8],  //
                                                 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
    for (int i = 0; i < kLanes; ++i) rows[i] = woven[i];
  }
#else
  float from[kLanes][kLanes], to[kLanes][kLanes];
  std::memcpy(from, rows, sizeof from);
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < kLanes; ++j) to[j][i] = from[i][j];
  }
  std::memcpy(rows, to, sizeof to);
#endif
}

}  // namespace electra_fast
