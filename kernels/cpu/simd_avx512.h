// SPDX-License-Identifier: Apache-2.0
// The primitives of simd_generic.h over AVX-512 F, BW, DQ and VL; with kVnni over VNNI, and
// with kBf16 over BF16 as well. Only for files compiled with these.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/blocks.h"

namespace rempart::kernels {

template <bool kVnni, bool kBf16 = false>
struct Avx512Simd {
  static constexpr int kLanes = 16;
  static constexpr int kBytes = 64;
  static constexpr bool kHasDotBytes = kVnni;
  static constexpr bool kHasDotBFloat16 = kBf16;
  static constexpr int kTileTokens = 0;
  static constexpr bool kHasBFloat16Tiles = false;
  using F = __m512;
  using I = __m512i;

  static F Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, F a) { _mm512_storeu_ps(p, a); }
  static F Set1(float x) { return _mm512_set1_ps(x); }
  static F Zero() { return _mm512_setzero_ps(); }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm512_div_ps(a, b); }
  static F Max(F a, F b) { return _mm512_max_ps(a, b); }
  static F Min(F a, F b) { return _mm512_min_ps(a, b); }
  static F Abs(F a) { return _mm512_abs_ps(a); }
  static F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static float Sum(F a) {
    const __m256 y = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
  }
  static void Sum4(const F* rows, float* out) {
    __m128 x[4];
    for (int r = 0; r < 4; ++r) {
      const __m256 y =
          _mm256_add_ps(_mm512_castps512_ps256(rows[r]), _mm512_extractf32x8_ps(rows[r], 1));
      x[r] = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    }
    const __m128 low = _mm_add_ps(_mm_unpacklo_ps(x[0], x[1]), _mm_unpackhi_ps(x[0], x[1]));
    const __m128 high = _mm_add_ps(_mm_unpacklo_ps(x[2], x[3]), _mm_unpackhi_ps(x[2], x[3]));
    _mm_storeu_ps(out, _mm_add_ps(_mm_movelh_ps(low, high), _mm_movehl_ps(high, low)));
  }
  static float MaxLane(F a) {
    const __m256 y = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
  }
  static F LoadHalf(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void StoreHalf(uint16_t* p, F a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
  static F LoadBFloat16(const uint16_t* p) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  static F LoadU8(const uint8_t* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static F LoadS8(const int8_t* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }

  static F ToFloat(I a) { return _mm512_cvtepi32_ps(a); }
  static I Round(F a) { return _mm512_cvtps_epi32(a); }
  static F Pow2(I n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
  }
  static void StoreInt8(int8_t* p, I a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a));
  }

  static I LoadBytes(const void* p) { return _mm512_loadu_si512(p); }
  static I Table16(const uint8_t* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static I Lookup(I table, I codes) { return _mm512_shuffle_epi8(table, codes); }
  static void StoreBytes(void* p, I a) { _mm512_storeu_si512(p, a); }
  static void Prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
  static void PrefetchToWrite(void* p) { __builtin_prefetch(p, 1); }
  static I AddBytes(I a, I b) { return _mm512_add_epi8(a, b); }
  static I ZeroInt() { return _mm512_setzero_si512(); }
  static I BroadcastBytes4(const void* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return _mm512_set1_epi32(x);
  }
  static I SetByte(uint8_t x) { return _mm512_set1_epi8(static_cast<char>(x)); }
  static I And(I a, I b) { return _mm512_and_si512(a, b); }
  static I Or(I a, I b) { return _mm512_or_si512(a, b); }
  static I AddInt(I a, I b) { return _mm512_add_epi32(a, b); }
  static I SubInt(I a, I b) { return _mm512_sub_epi32(a, b); }
  template <int kShift>
  static I ShiftLeft32(I a) {
    return _mm512_slli_epi32(a, kShift);
  }
  template <int kShift>
  static I ShiftLeft16(I a) {
    return _mm512_slli_epi16(a, kShift);
  }
  template <int kShift>
  static I ShiftRight16(I a) {
    return _mm512_srli_epi16(a, kShift);
  }

  static I DotBytes(I acc, I w, I a) { return DotBytesOf<kVnni>(acc, w, a); }
  static I MulPairs(I w, I a) { return _mm512_maddubs_epi16(w, a); }
  static I Add16(I a, I b) { return _mm512_add_epi16(a, b); }
  static I SumPairs(I a) { return _mm512_madd_epi16(a, _mm512_set1_epi16(1)); }
  static void Keep(I& a) { asm("" : "+v"(a)); }
  static I Abs8(I a) { return _mm512_abs_epi8(a); }
  static I Sign8(I a, I w) {
    return _mm512_mask_sub_epi8(a, _mm512_movepi8_mask(w), _mm512_setzero_si512(), a);
  }

#ifdef __AVX512BF16__
  static F DotBFloat16(F acc, I w, I x) {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
  }
  static void RoundToBFloat16(const float* x, int64_t count, uint16_t* out) {
    int64_t i = 0;
    for (; i + 32 <= count; i += 32) {
      const __m512bh pair = _mm512_cvtne2ps_pbh(Load(x + i + 16), Load(x + i));
      _mm512_storeu_si512(out + i, reinterpret_cast<__m512i>(pair));
    }
    for (; i < count; ++i) out[i] = FloatToBFloat16(x[i]);
  }
#endif

 private:
  template <bool kHas>
  static I DotBytesOf(I acc, I w, I a) {
    if constexpr (kHas) {
#ifdef __AVX512VNNI__
      return _mm512_dpbusd_epi32(acc, w, a);
#endif
    }
    return _mm512_add_epi32(acc, SumPairs(_mm512_maddubs_epi16(w, a)));
  }
};

}  // namespace rempart::kernels
