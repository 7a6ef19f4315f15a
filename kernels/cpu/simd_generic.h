// SPDX-License-Identifier: Apache-2.0
// The vector primitives in plain C++: the baseline tier, and the software twin of every other tier.
// A twin has its tier's lanes, its way of multiplying bytes and its saturation, so that the tier's
// algorithms run, and can fail, on a machine that lacks the instructions.
//
// What a primitive struct V offers (simd_avx2.h and simd_avx512.h follow the same list):
//   kLanes; kHasDotBytes; kHasDotBFloat16; F: kLanes floats; I: kLanes int32, or 4 * kLanes bytes.
//   kTileTokens: 16 where MulTiles multiplies whole matrices (GenericTiles, simd_amx.h), else 0.
//   kHasBFloat16Tiles: MulBFloat16Tiles does so (GenericBFloat16Tiles, simd_amx_bf16.h).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/blocks.h"

namespace rempart::kernels {

template <int kLaneCount, bool kDotBytes, bool kDotBFloat16 = false>
struct GenericSimd {
  static constexpr int kLanes = kLaneCount;
  static constexpr int kBytes = 4 * kLanes;
  // True: DotBytes. False: MulPairs, Add16, SumPairs, Abs8, Sign8.
  static constexpr bool kHasDotBytes = kDotBytes;
  // True: DotBFloat16, RoundToBFloat16.
  static constexpr bool kHasDotBFloat16 = kDotBFloat16;
  static constexpr int kTileTokens = 0;
  static constexpr bool kHasBFloat16Tiles = false;

  struct F {
    float v[kLanes];
  };
  struct I {
    int32_t v[kLanes];
  };

  template <class Fn>
  static F Map(Fn fn) {
    F r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = fn(i);
    return r;
  }
  template <class Fn>
  static I MapInt(Fn fn) {
    I r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = fn(i);
    return r;
  }

  static F Load(const float* p) {
    F r;
    std::memcpy(&r, p, sizeof(r));
    return r;
  }
  static void Store(float* p, F a) { std::memcpy(p, &a, sizeof(a)); }
  static F Set1(float x) {
    return Map([&](int) { return x; });
  }
  static F Zero() { return Set1(0.0f); }
  static F Add(F a, F b) {
    return Map([&](int i) { return a.v[i] + b.v[i]; });
  }
  static F Sub(F a, F b) {
    return Map([&](int i) { return a.v[i] - b.v[i]; });
  }
  static F Mul(F a, F b) {
    return Map([&](int i) { return a.v[i] * b.v[i]; });
  }
  static F Div(F a, F b) {
    return Map([&](int i) { return a.v[i] / b.v[i]; });
  }
  static F Max(F a, F b) {
    return Map([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F Min(F a, F b) {
    return Map([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F Abs(F a) {
    return Map([&](int i) { return a.v[i] < 0 ? -a.v[i] : a.v[i]; });
  }
  // a * b + c; fused where the instruction set can.
  static F Fma(F a, F b, F c) {
    return Map([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  // Pairwise, in the order of the hardware tiers: halves are added until one lane is left.
  static float Sum(F a) {
    for (int n = kLanes / 2; n > 0; n /= 2) {
      for (int i = 0; i < n; ++i) a.v[i] += a.v[i + n];
    }
    return a.v[0];
  }
  // out[r] = Sum(rows[r]).
  static void Sum4(const F* rows, float* out) {
    for (int r = 0; r < 4; ++r) out[r] = Sum(rows[r]);
  }
  static float MaxLane(F a) {
    for (int i = 1; i < kLanes; ++i) a.v[0] = a.v[i] > a.v[0] ? a.v[i] : a.v[0];
    return a.v[0];
  }
  static F LoadHalf(const uint16_t* p) {
    return Map([&](int i) { return HalfToFloat(p[i]); });
  }
  static void StoreHalf(uint16_t* p, F a) {
    for (int i = 0; i < kLanes; ++i) p[i] = FloatToHalf(a.v[i]);
  }
  static F LoadBFloat16(const uint16_t* p) {
    return Map([&](int i) { return BFloat16ToFloat(p[i]); });
  }
  static F LoadU8(const uint8_t* p) {
    return Map([&](int i) { return static_cast<float>(p[i]); });
  }
  static F LoadS8(const int8_t* p) {
    return Map([&](int i) { return static_cast<float>(p[i]); });
  }

  static F ToFloat(I a) {
    return Map([&](int i) { return static_cast<float>(a.v[i]); });
  }
  // Nearest, ties to even.
  static I Round(F a) {
    return MapInt([&](int i) { return static_cast<int32_t>(std::nearbyintf(a.v[i])); });
  }
  // 2^n for -126 <= n <= 127.
  static F Pow2(I n) {
    return Map([&](int i) { return std::bit_cast<float>((n.v[i] + 127) << 23); });
  }
  static void StoreInt8(int8_t* p, I a) {
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(a.v[i]);
  }

  static I LoadBytes(const void* p) {
    I r;
    std::memcpy(&r, p, sizeof(r));
    return r;
  }
  // 16 bytes, repeated; Lookup takes from them by codes below 16.
  static I Table16(const uint8_t* p) {
    uint8_t bytes[kBytes];
    for (int i = 0; i < kBytes; ++i) bytes[i] = p[i % 16];
    return LoadBytes(bytes);
  }
  static I Lookup(I table, I codes) {
    uint8_t bytes[kBytes];
    std::memcpy(bytes, &table, kBytes);
    return Each<uint8_t>(codes, codes, [&](uint8_t x, uint8_t) { return bytes[x & 15]; });
  }
  static void StoreBytes(void* p, I a) { std::memcpy(p, &a, sizeof(a)); }
  static void Prefetch(const void* p) { __builtin_prefetch(p); }
  static void PrefetchToWrite(void* p) { __builtin_prefetch(p, 1); }
  static I AddBytes(I a, I b) {  // wraps
    return Each<uint8_t>(a, b, [](uint8_t x, uint8_t y) { return static_cast<uint8_t>(x + y); });
  }
  static I ZeroInt() { return I{}; }
  static I BroadcastBytes4(const void* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return MapInt([&](int) { return x; });
  }
  static I SetByte(uint8_t x) {
    const auto pattern = static_cast<int32_t>(x * 0x01010101u);
    return MapInt([&](int) { return pattern; });
  }
  static I And(I a, I b) {
    return MapInt([&](int i) { return a.v[i] & b.v[i]; });
  }
  static I Or(I a, I b) {
    return MapInt([&](int i) { return a.v[i] | b.v[i]; });
  }
  static I AddInt(I a, I b) {
    return MapInt([&](int i) { return a.v[i] + b.v[i]; });
  }
  static I SubInt(I a, I b) {
    return MapInt([&](int i) { return a.v[i] - b.v[i]; });
  }
  template <int kShift>
  static I ShiftLeft32(I a) {
    return MapInt(
        [&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << kShift); });
  }
  // Of 16-bit elements.
  template <int kShift>
  static I ShiftLeft16(I a) {
    return Each<uint16_t>(a, a,
                          [](uint16_t x, uint16_t) { return static_cast<uint16_t>(x << kShift); });
  }
  template <int kShift>
  static I ShiftRight16(I a) {
    return Each<uint16_t>(a, a,
                          [](uint16_t x, uint16_t) { return static_cast<uint16_t>(x >> kShift); });
  }

  // acc[i] + sum over 4 bytes of unsigned w * signed a: vpdpbusd.
  static I DotBytes(I acc, I w, I a) {
    uint8_t u[kBytes];
    int8_t s[kBytes];
    std::memcpy(u, &w, kBytes);
    std::memcpy(s, &a, kBytes);
    return MapInt([&](int i) {
      int32_t sum = acc.v[i];
      for (int j = 4 * i; j < 4 * i + 4; ++j) sum += u[j] * s[j];
      return sum;
    });
  }
  // acc[i] + the sum of two products of BF16, each added by itself: vdpbf16ps, which takes numbers
  // below the smallest normal one for zero.
  static F DotBFloat16(F acc, I w, I x) {
    uint16_t a[kBytes / 2], b[kBytes / 2];
    std::memcpy(a, &w, kBytes);
    std::memcpy(b, &x, kBytes);
    return Map([&](int i) {
      const float odd = acc.v[i] + NormalBFloat16(a[2 * i + 1]) * NormalBFloat16(b[2 * i + 1]);
      return odd + NormalBFloat16(a[2 * i]) * NormalBFloat16(b[2 * i]);
    });
  }
  // Nearest, ties to even.
  static void RoundToBFloat16(const float* x, int64_t count, uint16_t* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = FloatToBFloat16(x[i]);
  }
  // 16-bit elements: saturate(u[2i] * s[2i] + u[2i+1] * s[2i+1]): vpmaddubsw.
  static I MulPairs(I w, I a) {
    uint8_t u[kBytes];
    int8_t s[kBytes];
    int16_t out[kBytes / 2];
    std::memcpy(u, &w, kBytes);
    std::memcpy(s, &a, kBytes);
    for (int i = 0; i < kBytes / 2; ++i) {
      const int sum = u[2 * i] * s[2 * i] + u[2 * i + 1] * s[2 * i + 1];
      out[i] = static_cast<int16_t>(sum > 32767 ? 32767 : (sum < -32768 ? -32768 : sum));
    }
    return LoadBytes(out);
  }
  static I Add16(I a, I b) {  // wraps
    return Each<uint16_t>(a, b,
                          [](uint16_t x, uint16_t y) { return static_cast<uint16_t>(x + y); });
  }
  // int32 elements: sum of the two 16-bit halves.
  static I SumPairs(I a) {
    return MapInt([&](int i) {
      return static_cast<int16_t>(a.v[i] & 0xffff) + static_cast<int16_t>(a.v[i] >> 16);
    });
  }
  static void Keep(I&) {}  // stays in its register: the compiler moves no sum past this
  static I Abs8(I a) {
    return Each<int8_t>(a, a, [](int8_t x, int8_t) { return static_cast<int8_t>(x < 0 ? -x : x); });
  }
  // a with its sign flipped where w is negative.
  static I Sign8(I a, I w) {
    return Each<int8_t>(a, w,
                        [](int8_t x, int8_t y) { return static_cast<int8_t>(y < 0 ? -x : x); });
  }

 protected:
  static float NormalBFloat16(uint16_t x) {
    return BFloat16ToFloat((x & 0x7f80) != 0 ? x : static_cast<uint16_t>(x & 0x8000));
  }

 private:
  template <class T, class Fn>
  static I Each(I a, I b, Fn fn) {
    constexpr int kCount = kBytes / static_cast<int>(sizeof(T));
    T x[kCount], y[kCount];
    std::memcpy(x, &a, kBytes);
    std::memcpy(y, &b, kBytes);
    for (int i = 0; i < kCount; ++i) x[i] = fn(x[i], y[i]);
    return LoadBytes(x);
  }
};

// The tile unit in software.
struct GenericTiles : GenericSimd<16, true, true> {
  static constexpr int kTileTokens = 16;

  static void BeginTiles() {}
  static void EndTiles() {}
  // out[r][t][lane] = sum over kRows vectors j and c < 4 of q[t * q_stride + 4j + c] *
  // codes[(2j + r) * 64 + 4 * lane + c], for two row groups r: signed activations, unsigned codes.
  template <int kRows>
  static void MulTiles(const uint8_t* codes, const int8_t* q, int64_t q_stride,
                       int32_t (*out)[16][16]) {
    for (int r = 0; r < 2; ++r) {
      for (int t = 0; t < 16; ++t) {
        for (int lane = 0; lane < 16; ++lane) {
          int32_t sum = 0;
          for (int i = 0; i < 4 * kRows; ++i) {
            sum += q[t * q_stride + i] * codes[(2 * (i / 4) + r) * 64 + 4 * lane + i % 4];
          }
          out[r][t][lane] = sum;
        }
      }
    }
  }
};

// The tile unit that multiplies BF16, in software: tdpbf16ps.
struct GenericBFloat16Tiles : GenericTiles {
  static constexpr bool kHasBFloat16Tiles = true;

  static void BeginBFloat16Tiles() {}
  // sums[i][k][r][t] += the products of row 16i + r of w with token 16k + t over 32 * steps
  // columns; x[step][k][pair][t] holds columns 32 * step + 2 * pair and the one behind it. In each
  // step the even and the odd columns are added up by themselves, then to each other, then to the
  // sum.
  template <int kTokenTiles>
  static void MulBFloat16Tiles(const uint16_t* w, int64_t w_stride, int64_t steps,
                               const uint16_t (*x)[2][16][16][2], float (*sums)[2][16][16]) {
    for (int64_t step = 0; step < steps; ++step) {
      for (int row = 0; row < 32; ++row) {
        const uint16_t* a = w + row * w_stride + 32 * step;
        for (int token = 0; token < 16 * kTokenTiles; ++token) {
          float part[2] = {0, 0};
          for (int c = 0; c < 32; ++c) {
            const uint16_t b = x[step][token / 16][c / 2][token % 16][c % 2];
            part[c % 2] += NormalBFloat16(a[c]) * NormalBFloat16(b);
          }
          sums[row / 16][token / 16][row % 16][token % 16] += part[0] + part[1];
        }
      }
    }
  }
};

}  // namespace rempart::kernels
