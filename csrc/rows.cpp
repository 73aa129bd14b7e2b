#include "rows.h"

// Philox multiplies 32-bit words to 64-bit products, for which vector units have an instruction and compilers no
// pattern: from GCC 12, compiled for AVX-512, `draw_portably` makes 0.8e9 words a second where `draw_avx512` makes 2.2e9.
#if defined(__x86_64__) && defined(__GNUC__) && ELECTRA_FAST_X86_LEVEL > 1
#define ELECTRA_FAST_HAS_INTRINSICS
#include <immintrin.h>
#endif

namespace electra_fast {
namespace {

[[maybe_unused]] void draw_portably(const Dropout& dropout, std::int64_t row_id, std::int64_t n, float* factors,
                                    std::uint32_t first_block) {
  constexpr int kCalls = kDrawn / 4;
  for (std::int64_t first = 0; first < n; first += kDrawn) {
    std::uint32_t words[4][kCalls];
    for (int i = 0; i < kCalls; ++i) {
      const auto block = first_block + static_cast<std::uint32_t>(first / 4 + i);
      const Words drawn = philox(dropout.seed, block, static_cast<std::uint64_t>(row_id), dropout.stream);
      words[0][i] = drawn.w0;
      words[1][i] = drawn.w1;
      words[2][i] = drawn.w2;
      words[3][i] = drawn.w3;
    }
    for (int i = 0; i < kCalls; ++i) {
      for (int w = 0; w < 4; ++w) {
        factors[first + 4 * i + w] = words[w][i] > dropout.last_dropped ? dropout.scale : 0.0F;
      }
    }
  }
}

#if defined(ELECTRA_FAST_HAS_INTRINSICS)

constexpr std::uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57, kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;

#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // of GCC 12's own header, bug 105593
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

// `philox`, in lanes of 64 bits of which only the low half counts: a product then leaves both its words where the
// next round wants them. Several vectors of calls go side by side, since each waits for its own products.

template <int kVectors>  // of 32 columns
__attribute__((target("avx512f"))) inline void draw_avx512(const Dropout& dropout, std::int64_t row_id,
                                                           std::int64_t first, float* factors,
                                                           std::uint32_t first_block) {
  const __m512i multiplier0 = _mm512_set1_epi64(kMultiplier0), multiplier1 = _mm512_set1_epi64(kMultiplier1);
  __m512i c0[kVectors], c1[kVectors], c2[kVectors], c3[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    // In the order of lanes that unpacking undoes.
    c0[v] = _mm512_add_epi64(_mm512_set1_epi64(first_block + first / 4 + 8 * v), _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7));
    c1[v] = _mm512_set1_epi64(row_id);
    c2[v] = _mm512_set1_epi64(static_cast<std::int64_t>(static_cast<std::uint64_t>(row_id) >> 32));
    c3[v] = _mm512_set1_epi64(dropout.stream);
  }
  auto key0 = static_cast<std::uint32_t>(dropout.seed), key1 = static_cast<std::uint32_t>(dropout.seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round, key0 += kWeyl0, key1 += kWeyl1) {
    for (int v = 0; v < kVectors; ++v) {
      constexpr int kXor = 0x96;  // of three
      const __m512i product0 = _mm512_mul_epu32(c0[v], multiplier0), product1 = _mm512_mul_epu32(c2[v], multiplier1);
      c0[v] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(product1, 32), c1[v], _mm512_set1_epi64(key0), kXor);
      c1[v] = product1;
      c2[v] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(product0, 32), c3[v], _mm512_set1_epi64(key1), kXor);
      c3[v] = product0;
    }
  }
  const __m512i last_dropped = _mm512_set1_epi32(static_cast<int>(dropout.last_dropped));
  const __m512 scale = _mm512_set1_ps(dropout.scale);
  for (int v = 0; v < kVectors; ++v) {
    const __m512i words01 = _mm512_mask_blend_epi32(0xAAAA, c0[v], _mm512_slli_epi64(c1[v], 32));
    const __m512i words23 = _mm512_mask_blend_epi32(0xAAAA, c2[v], _mm512_slli_epi64(c3[v], 32));
    const __m512i words[2] = {_mm512_unpacklo_epi64(words01, words23), _mm512_unpackhi_epi64(words01, words23)};
    for (int half = 0; half < 2; ++half) {
      const __mmask16 kept = _mm512_cmpgt_epu32_mask(words[half], last_dropped);
      _mm512_storeu_ps(factors + first + 32 * v + 16 * half, _mm512_maskz_mov_ps(kept, scale));
    }
  }
}

__attribute__((target("avx512f"))) void draw_avx512(const Dropout& dropout, std::int64_t row_id, std::int64_t n,
                                                    float* factors, std::uint32_t first_block) {
  std::int64_t first = 0;
  for (; n - first > 64; first += 128) draw_avx512<4>(dropout, row_id, first, factors, first_block);
  if (first < n) draw_avx512<2>(dropout, row_id, first, factors, first_block);
}

__attribute__((target("avx2"))) void draw_avx2(const Dropout& dropout, std::int64_t row_id, std::int64_t n,
                                               float* factors, std::uint32_t first_block) {
  constexpr int kVectors = 4;  // of 16 columns
  const __m256i multiplier0 = _mm256_set1_epi64x(kMultiplier0), multiplier1 = _mm256_set1_epi64x(kMultiplier1);
  const __m256i sign = _mm256_set1_epi32(INT32_MIN);  // flipped in both, words compare as signed numbers
  const __m256i last_dropped = _mm256_xor_si256(sign, _mm256_set1_epi32(static_cast<int>(dropout.last_dropped)));
  const __m256 scale = _mm256_set1_ps(dropout.scale);
  for (std::int64_t first = 0; first < n; first += 16 * kVectors) {
    __m256i c0[kVectors], c1[kVectors], c2[kVectors], c3[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      c0[v] = _mm256_add_epi64(_mm256_set1_epi64x(first_block + first / 4 + 4 * v), _mm256_setr_epi64x(0, 2, 1, 3));
      c1[v] = _mm256_set1_epi64x(row_id);
      c2[v] = _mm256_set1_epi64x(static_cast<std::int64_t>(static_cast<std::uint64_t>(row_id) >> 32));
      c3[v] = _mm256_set1_epi64x(dropout.stream);
    }
    auto key0 = static_cast<std::uint32_t>(dropout.seed), key1 = static_cast<std::uint32_t>(dropout.seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round, key0 += kWeyl0, key1 += kWeyl1) {
      const __m256i keys0 = _mm256_set1_epi64x(key0), keys1 = _mm256_set1_epi64x(key1);
      for (int v = 0; v < kVectors; ++v) {
        const __m256i product0 = _mm256_mul_epu32(c0[v], multiplier0), product1 = _mm256_mul_epu32(c2[v], multiplier1);
        c0[v] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product1, 32), c1[v]), keys0);
        c1[v] = product1;
        c2[v] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product0, 32), c3[v]), keys1);
        c3[v] = product0;
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      const __m256i words01 = _mm256_blend_epi32(c0[v], _mm256_slli_epi64(c1[v], 32), 0xAA);
      const __m256i words23 = _mm256_blend_epi32(c2[v], _mm256_slli_epi64(c3[v], 32), 0xAA);
      const __m256i words[2] = {_mm256_unpacklo_epi64(words01, words23), _mm256_unpackhi_epi64(words01, words23)};
      for (int half = 0; half < 2; ++half) {
        const __m256i kept = _mm256_cmpgt_epi32(_mm256_xor_si256(words[half], sign), last_dropped);
        _mm256_storeu_ps(factors + first + 16 * v + 8 * half, _mm256_and_ps(_mm256_castsi256_ps(kept), scale));
      }
    }
  }
}

#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

using Draw = void (*)(const Dropout&, std::int64_t, std::int64_t, float*, std::uint32_t);

Draw fastest() {
#if defined(ELECTRA_FAST_HAS_INTRINSICS)
  if (ELECTRA_FAST_X86_LEVEL == 4 && __builtin_cpu_supports("avx512f")) return draw_avx512;
  if (__builtin_cpu_supports("avx2")) return draw_avx2;
#endif
  return draw_portably;
}

}  // namespace

void draw_factors(const Dropout& dropout, std::int64_t row_id, std::int64_t n, float* factors,
                  std::uint32_t first_block) {
  static const Draw draw = fastest();
  draw(dropout, row_id, n, factors, first_block);
}

}  // namespace electra_fast
