// Philox-4x32-10 (Salmon et al., 2011), the generator of every random number; electra_fast/ops/random.py has the facts.
#pragma once

#include <cstdint>

// The highest level of x86-64 to compile for: 4 has AVX-512, 3 AVX2, 1 is plain. Tests run the lower ones by it.
#if !defined(ELECTRA_FAST_X86_LEVEL)
#define ELECTRA_FAST_X86_LEVEL 4
#endif

// Compiles a function once per instruction set and lets the loader choose: wheels are built for plain x86-64. Not where
// a sanitizer runs: the loader asks before the sanitizer is ready.
#if !defined(ELECTRA_FAST_NO_CLONES) && ELECTRA_FAST_X86_LEVEL > 1 && defined(__x86_64__) && defined(__linux__) && \
    defined(__GLIBC__) &&                                                                                           \
    ((defined(__GNUC__) && !defined(__clang__)) || (defined(__clang__) && __clang_major__ >= 15))
#define ELECTRA_FAST_HAS_CLONES
#if ELECTRA_FAST_X86_LEVEL == 4
#define ELECTRA_FAST_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ELECTRA_FAST_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#endif
#else
#define ELECTRA_FAST_CLONES
#endif

#if defined(_MSC_VER)
#define ELECTRA_FAST_INLINE __forceinline
#else
#define ELECTRA_FAST_INLINE inline __attribute__((always_inline))
#endif

namespace electra_fast {

struct Words {
  std::uint32_t w0, w1, w2, w3;
};

// The four words for one counter. Inlined so that a loop around it becomes vector code.
ELECTRA_FAST_INLINE Words philox(std::uint64_t seed, std::uint32_t column_block, std::uint64_t row_id,
                                 std::uint32_t stream) {
  std::uint32_t key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
  std::uint32_t c0 = column_block, c1 = static_cast<std::uint32_t>(row_id);
  std::uint32_t c2 = static_cast<std::uint32_t>(row_id >> 32), c3 = stream;
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53} * c0, product1 = std::uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<std::uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<std::uint32_t>(product1);
    c2 = static_cast<std::uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<std::uint32_t>(product0);
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return {c0, c1, c2, c3};
}

}  // namespace electra_fast
