// SPDX-License-Identifier: Apache-2.0
// What a tier needs to know of each quantised type: 32-element groups of unsigned codes with a
// scale and an offset, a minimum or a table of values:
//   x[i] = scale * (code[i] - kOffset)   or   scale * code[i] + min   or   scale * kValues[code[i]]
// kHalves: a scale (and minimum) for each 16 elements. kExponent: the scale is a power of two.
// Everything hangs on the primitive struct V, so that each tier has its own copy.
#pragma once

#include <cstdint>

#include "kernels/blocks.h"
#include "kernels/ops.h"

namespace rempart::kernels {

template <class V>
struct Formats {
  static void Nibbles(const uint8_t* qs, uint8_t* q) {
    for (int i = 0; i < 16; ++i) q[i] = qs[i] & 15;
    for (int i = 0; i < 16; ++i) q[i + 16] = qs[i] >> 4;
  }
  template <class B>
  static const B& At(const void* row, int64_t index) {
    return static_cast<const B*>(row)[index];
  }

  // Types with one half-precision scale per group.
  template <class B, int kBitCount, int kCodeOffset, bool kMin>
  struct Plain {
    static constexpr int kBits = kBitCount;
    static constexpr int kOffset = kCodeOffset;
    static constexpr bool kHasMin = kMin;
    static constexpr bool kIsK = false;
    static constexpr bool kHalves = false;
    static constexpr bool kSignedScale = false;
    static constexpr bool kExponent = false;
    static constexpr bool kIsLookup = false;
    static constexpr const int8_t* kValues = nullptr;  // of kIsLookup
    static uint16_t ScaleBits(const void* row, int64_t g) { return At<B>(row, g).d; }
    static uint16_t MinBits(const void* row, int64_t g) {
      if constexpr (kMin) return At<B>(row, g).m;
      return 0;
    }
    static float Scale(const void* row, int64_t g, int) { return HalfToFloat(ScaleBits(row, g)); }
    static float Min(const void* row, int64_t g, int) { return HalfToFloat(MinBits(row, g)); }
  };

  struct Q8_0 : Plain<BlockQ8_0, 8, 128, false> {
    static void Codes(const void* row, int64_t g, uint8_t* q) {
      const BlockQ8_0& b = At<BlockQ8_0>(row, g);
      for (int i = 0; i < 32; ++i) q[i] = static_cast<uint8_t>(b.qs[i]) ^ 0x80;
    }
  };
  struct Q4_0 : Plain<BlockQ4_0, 4, 8, false> {
    static void Codes(const void* row, int64_t g, uint8_t* q) {
      Nibbles(At<BlockQ4_0>(row, g).qs, q);
    }
  };
  struct Q4_1 : Plain<BlockQ4_1, 4, 0, true> {
    static void Codes(const void* row, int64_t g, uint8_t* q) {
      Nibbles(At<BlockQ4_1>(row, g).qs, q);
    }
  };
  template <class B>
  static void Codes5(const B& b, uint8_t* q) {
    Nibbles(b.qs, q);
    const uint32_t qh =
        b.qh[0] | b.qh[1] << 8 | b.qh[2] << 16 | static_cast<uint32_t>(b.qh[3]) << 24;
    for (int i = 0; i < 32; ++i) q[i] |= static_cast<uint8_t>(((qh >> i) & 1) << 4);
  }
  struct Q5_0 : Plain<BlockQ5_0, 5, 16, false> {
    static void Codes(const void* row, int64_t g, uint8_t* q) { Codes5(At<BlockQ5_0>(row, g), q); }
  };
  struct Q5_1 : Plain<BlockQ5_1, 5, 0, true> {
    static void Codes(const void* row, int64_t g, uint8_t* q) { Codes5(At<BlockQ5_1>(row, g), q); }
  };

  // Types whose 256-element block has half-precision scales times small integers per group.
  template <class B, int kBitCount>
  struct KWithMin {
    static constexpr int kBits = kBitCount;
    static constexpr int kOffset = 0;
    static constexpr bool kHasMin = true;
    static constexpr bool kIsK = true;
    static constexpr bool kHalves = false;
    static constexpr bool kSignedScale = false;
    static constexpr bool kExponent = false;
    static constexpr bool kIsLookup = false;
    static constexpr const int8_t* kValues = nullptr;  // of kIsLookup
    static uint16_t ScaleBits(const void* row, int64_t g) { return At<B>(row, g / 8).d; }
    static uint16_t MinBits(const void* row, int64_t g) { return At<B>(row, g / 8).dmin; }
    static uint8_t ScaleByte(const void* row, int64_t g, int) {
      uint8_t scale, min;
      KScaleMin(At<B>(row, g / 8).scales, static_cast<int>(g % 8), &scale, &min);
      return scale;
    }
    static uint8_t MinByte(const void* row, int64_t g) {
      uint8_t scale, min;
      KScaleMin(At<B>(row, g / 8).scales, static_cast<int>(g % 8), &scale, &min);
      return min;
    }
    static float Scale(const void* row, int64_t g, int half) {
      return HalfToFloat(ScaleBits(row, g)) * static_cast<float>(ScaleByte(row, g, half));
    }
    static float Min(const void* row, int64_t g, int) {
      return -(HalfToFloat(MinBits(row, g)) * static_cast<float>(MinByte(row, g)));
    }
    static void LowCodes(const B& b, int g, uint8_t* q) {
      const uint8_t* qs = b.qs + 32 * (g / 2);
      const int shift = 4 * (g % 2);
      for (int i = 0; i < 32; ++i) q[i] = (qs[i] >> shift) & 15;
    }
  };
  struct Q4_K : KWithMin<BlockQ4_K, 4> {
    static void Codes(const void* row, int64_t g, uint8_t* q) {
      Q4_K::LowCodes(At<BlockQ4_K>(row, g / 8), static_cast<int>(g % 8), q);
    }
  };
  struct Q5_K : KWithMin<BlockQ5_K, 5> {
    static void Codes(const void* row, int64_t g, uint8_t* q) {
      const BlockQ5_K& b = At<BlockQ5_K>(row, g / 8);
      const int shift = static_cast<int>(g % 8);
      Q5_K::LowCodes(b, shift, q);
      for (int i = 0; i < 32; ++i) q[i] |= static_cast<uint8_t>(((b.qh[i] >> shift) & 1) << 4);
    }
  };
  // Types with a signed scale for every 16 or 32 elements, and no minimum.
  template <class Own, class B, int kBitCount, int kCodeOffset, bool kPerHalf>
  struct KSigned {
    static constexpr int kBits = kBitCount;
    static constexpr int kOffset = kCodeOffset;
    static constexpr bool kHasMin = false;
    static constexpr bool kIsK = true;
    static constexpr bool kHalves = kPerHalf;
    static constexpr bool kSignedScale = true;
    static constexpr bool kExponent = false;
    static constexpr bool kIsLookup = false;
    static constexpr const int8_t* kValues = nullptr;  // of kIsLookup
    static uint16_t ScaleBits(const void* row, int64_t g) { return At<B>(row, g / 8).d; }
    static uint16_t MinBits(const void*, int64_t) { return 0; }
    static uint8_t ScaleByte(const void* row, int64_t g, int half) {
      return static_cast<uint8_t>(Own::Factor(At<B>(row, g / 8), static_cast<int>(g % 8), half));
    }
    static uint8_t MinByte(const void* row, int64_t g) { return ScaleByte(row, g, 1); }
    static float Scale(const void* row, int64_t g, int half) {
      const auto scale = static_cast<int8_t>(ScaleByte(row, g, half));
      return HalfToFloat(ScaleBits(row, g)) * static_cast<float>(scale);
    }
    static float Min(const void*, int64_t, int) { return 0.0f; }
  };
  struct Q3_K : KSigned<Q3_K, BlockQ3_K, 3, 4, true> {
    static int8_t Factor(const BlockQ3_K& b, int g, int half) {
      return Q3KScale(b.scales, 2 * g + half);
    }
    static void Codes(const void* row, int64_t g, uint8_t* q) {
      const BlockQ3_K& b = At<BlockQ3_K>(row, g / 8);
      const int group = static_cast<int>(g % 8);
      Codes2(b.qs, group, q);
      for (int i = 0; i < 32; ++i) q[i] |= static_cast<uint8_t>(((b.hmask[i] >> group) & 1) << 2);
    }
  };
  struct IQ4_XS : KSigned<IQ4_XS, BlockIQ4_XS, 4, 128, false> {
    static constexpr bool kIsLookup = true;
    static constexpr const int8_t* kValues = kIq4Values;
    static int8_t Factor(const BlockIQ4_XS& b, int g, int) { return IQ4XSScale(b, g); }
    static void Codes(const void* row, int64_t g, uint8_t* q) {
      Nibbles(At<BlockIQ4_XS>(row, g / 8).qs + 16 * (g % 8), q);
    }
  };
  struct Q6_K : KSigned<Q6_K, BlockQ6_K, 6, 32, true> {
    static int8_t Factor(const BlockQ6_K& b, int g, int half) { return b.scales[2 * g + half]; }
    static void Codes(const void* row, int64_t g, uint8_t* q) {
      const BlockQ6_K& b = At<BlockQ6_K>(row, g / 8);
      const int half = static_cast<int>(g % 8) / 4;
      const int group = static_cast<int>(g % 4);
      const uint8_t* ql = b.ql + 64 * half + 32 * (group % 2);
      const uint8_t* qh = b.qh + 32 * half;
      for (int i = 0; i < 32; ++i) {
        const int low = (ql[i] >> (4 * (group / 2))) & 15;
        const int high = (qh[i] >> (2 * group)) & 3;
        q[i] = static_cast<uint8_t>(low | (high << 4));
      }
    }
  };

  static void Codes2(const uint8_t* qs, int g, uint8_t* q) {
    for (int i = 0; i < 32; ++i) q[i] = (qs[32 * (g / 4) + i] >> (2 * (g % 4))) & 3;
  }
  // A scale and a minimum for every 16 elements, both in one byte.
  struct Q2_K : KWithMin<BlockQ2_K, 2> {
    static constexpr bool kHalves = true;
    static uint8_t ScaleByte(const void* row, int64_t g, int half) {
      return At<BlockQ2_K>(row, g / 8).scales[2 * (g % 8) + half];
    }
    static uint8_t MinByte(const void* row, int64_t g) { return ScaleByte(row, g, 1); }
    static float Scale(const void* row, int64_t g, int half) {
      const uint16_t bits = KWithMin<BlockQ2_K, 2>::ScaleBits(row, g);
      return HalfToFloat(bits) * static_cast<float>(ScaleByte(row, g, half) & 15);
    }
    static float Min(const void* row, int64_t g, int half) {
      const uint16_t bits = KWithMin<BlockQ2_K, 2>::MinBits(row, g);
      return -(HalfToFloat(bits) * static_cast<float>(ScaleByte(row, g, half) >> 4));
    }
    static void Codes(const void* row, int64_t g, uint8_t* q) {
      Codes2(At<BlockQ2_K>(row, g / 8).qs, static_cast<int>(g % 8), q);
    }
  };
  // Codes that stand for values of a table.
  struct IQ4_NL : Plain<BlockIQ4_NL, 4, 128, false> {
    static constexpr bool kIsLookup = true;
    static constexpr const int8_t* kValues = kIq4Values;
    static void Codes(const void* row, int64_t g, uint8_t* q) {
      Nibbles(At<BlockIQ4_NL>(row, g).qs, q);
    }
  };
  struct MXFP4 {
    static constexpr int kBits = 4;
    static constexpr int kOffset = 128;
    static constexpr bool kHasMin = false;
    static constexpr bool kIsK = false;
    static constexpr bool kHalves = false;
    static constexpr bool kSignedScale = false;
    static constexpr bool kExponent = true;
    static constexpr bool kIsLookup = true;
    static constexpr const int8_t* kValues = kMxfp4Values;
    static uint16_t ScaleBits(const void*, int64_t) { return 0; }
    static uint16_t MinBits(const void*, int64_t) { return 0; }
    static uint8_t ScaleByte(const void* row, int64_t g, int) { return At<BlockMXFP4>(row, g).e; }
    static float Scale(const void* row, int64_t g, int) {
      return HalfOfE8M0(At<BlockMXFP4>(row, g).e);
    }
    static void Codes(const void* row, int64_t g, uint8_t* q) {
      Nibbles(At<BlockMXFP4>(row, g).qs, q);
    }
  };

  // Calls fn(format) for a quantised type; returns false for plain numbers.
  template <class Fn>
  static bool Visit(DType type, Fn fn) {
    switch (type) {
      case DType::kQ8_0:
        return fn(Q8_0()), true;
      case DType::kQ4_0:
        return fn(Q4_0()), true;
      case DType::kQ4_1:
        return fn(Q4_1()), true;
      case DType::kQ5_0:
        return fn(Q5_0()), true;
      case DType::kQ5_1:
        return fn(Q5_1()), true;
      case DType::kQ4_K:
        return fn(Q4_K()), true;
      case DType::kQ5_K:
        return fn(Q5_K()), true;
      case DType::kQ6_K:
        return fn(Q6_K()), true;
      case DType::kQ2_K:
        return fn(Q2_K()), true;
      case DType::kQ3_K:
        return fn(Q3_K()), true;
      case DType::kIQ4_NL:
        return fn(IQ4_NL()), true;
      case DType::kIQ4_XS:
        return fn(IQ4_XS()), true;
      case DType::kMXFP4:
        return fn(MXFP4()), true;
      case DType::kF32:
      case DType::kF16:
      case DType::kBF16:
        return false;
    }
    return false;
  }
};

}  // namespace rempart::kernels
