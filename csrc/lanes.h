// Sixteen floats in registers: one of AVX-512, two of AVX2, four of others.
//
// Compilers keep vectors in registers only if these are as wide as the machine's: 64-byte vectors compiled for AVX2 run
// at a twentieth of the speed. So code is a template over the bytes of a register, and chooses when it runs.
#pragma once

#include <cstdint>
#include <cstring>

#include "numeric.h"
#include "philox.h"

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector) && __has_builtin(__builtin_convertvector)
#define ELECTRA_FAST_SHUFFLES  // GCC 12, Clang
#endif
#endif

namespace electra_fast {

constexpr std::int64_t kLanes = 16;
constexpr int kWide = 64;
#if defined(__x86_64__)
constexpr int kNarrow = 32;
#else
constexpr int kNarrow = 16;
#endif

// Whether registers of 64 bytes are there, and the loader's choice between clones (philox.h) is the one that has them.
inline bool is_wide() {
#if defined(ELECTRA_FAST_HAS_CLONES) && ELECTRA_FAST_X86_LEVEL == 4
  static const bool found = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512vl");
  return found;
#else
  return false;
#endif
}

#if defined(__GNUC__)
template <int kBytes>
struct RegisterOf;  // GCC forgets a vector size that depends on a template argument
template <>
struct RegisterOf<16> {
  typedef float Type __attribute__((vector_size(16)));
};
template <>
struct RegisterOf<32> {
  typedef float Type __attribute__((vector_size(32)));
};
template <>
struct RegisterOf<64> {
  typedef float Type __attribute__((vector_size(64)));
};
#else
template <int kBytes>
struct RegisterOf {
  typedef float Type;
};
#endif

template <int kBytes>
struct Lanes {
  typedef typename RegisterOf<kBytes>::Type Register;
  static constexpr int kRegisters = 64 / sizeof(Register);
  Register registers[kRegisters];

  ELECTRA_FAST_INLINE void add(const Lanes& other) {
    for (int i = 0; i < kRegisters; ++i) registers[i] += other.registers[i];
  }
  ELECTRA_FAST_INLINE void add_product(float factor, const Lanes& other) {
    for (int i = 0; i < kRegisters; ++i) registers[i] += factor * other.registers[i];
  }
  ELECTRA_FAST_INLINE void scale(float factor) {
    for (int i = 0; i < kRegisters; ++i) registers[i] *= factor;
  }

  // One by one: copied at once they would go through memory.
  ELECTRA_FAST_INLINE void load(const float* from) {
    for (int i = 0; i < kRegisters; ++i) std::memcpy(&registers[i], from + i * kLanes / kRegisters, sizeof(Register));
  }
  ELECTRA_FAST_INLINE void store(float* to) const {
    for (int i = 0; i < kRegisters; ++i) std::memcpy(to + i * kLanes / kRegisters, &registers[i], sizeof(Register));
  }

  ELECTRA_FAST_INLINE void load(const bfloat16* from) {
#if defined(ELECTRA_FAST_SHUFFLES)
    if constexpr (kBytes == kWide) {
      Halves halves;
      std::memcpy(&halves, from, sizeof halves);
      registers[0] = (Register)(__builtin_convertvector(halves, Words) << 16);
      return;
    }
#endif
    load_some(from, kLanes);
  }
  ELECTRA_FAST_INLINE void store(bfloat16* to) const {
#if defined(ELECTRA_FAST_SHUFFLES)
    if constexpr (kBytes == kWide) {
      // As `store` in numeric.h: to nearest, ties to even, and a NaN stays one.
      const Words bits = (Words)registers[0];
      const Words rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
      const Words words = registers[0] == registers[0] ? rounded : Words{} + 0x7FC0;
      const Halves halves = __builtin_convertvector(words, Halves);
      std::memcpy(to, &halves, sizeof halves);
      return;
    }
#endif
    store_some(to, kLanes);
  }

  // The first `count` numbers, at most sixteen; the other lanes are zero, or are not stored.
  template <class T>
  ELECTRA_FAST_INLINE void load(const T* from, std::int64_t count) {
    count >= kLanes ? load(from) : load_some(from, count);
  }
  template <class T>
  ELECTRA_FAST_INLINE void store(T* to, std::int64_t count) const {
    count >= kLanes ? store(to) : store_some(to, count);
  }

 private:
#if defined(ELECTRA_FAST_SHUFFLES)
  typedef std::uint32_t Words __attribute__((vector_size(64)));
  typedef std::uint16_t Halves __attribute__((vector_size(32)));
#endif

  template <class T>
  ELECTRA_FAST_INLINE void load_some(const T* from, std::int64_t count) {
    float values[kLanes] = {};
    for (std::int64_t i = 0; i < count; ++i) values[i] = electra_fast::load(from + i);
    load(values);
  }
  template <class T>
  ELECTRA_FAST_INLINE void store_some(T* to, std::int64_t count) const {
    float values[kLanes];
    store(values);
    for (std::int64_t i = 0; i < count; ++i) electra_fast::store(to + i, values[i]);
  }
};

// Transposes 16 x 16 floats.
template <int kBytes>
ELECTRA_FAST_INLINE void transpose_lanes(Lanes<kBytes>* rows) {
#if defined(ELECTRA_FAST_SHUFFLES)
  if constexpr (kBytes == kWide) {
    // Four times, rows i and i + 8 are woven into rows 2i and 2i + 1.
    for (int round = 0; round < 4; ++round) {
      Lanes<kBytes> woven[kLanes];
      for (int i = 0; i < 8; ++i) {
        const auto &above = rows[i].registers[0], &below = rows[i + 8].registers[0];
        woven[2 * i].registers[0] =
            __builtin_shufflevector(above, below, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        woven[2 * i + 1].registers[0] =
            __builtin_shufflevector(above, below, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
      }
      for (int i = 0; i < kLanes; ++i) rows[i] = woven[i];
    }
    return;
  }
#endif
  float from[kLanes][kLanes], to[kLanes][kLanes];
  std::memcpy(from, rows, sizeof from);
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < kLanes; ++j) to[j][i] = from[i][j];
  }
  std::memcpy(rows, to, sizeof to);
}

}  // namespace electra_fast
