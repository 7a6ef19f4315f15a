// SPDX-License-Identifier: Apache-2.0
// The layout that the int8 matmul reads: kLanes rows side by side, one lane per row, so that
// neither decode nor prefill ever adds across lanes, and both add in the same order.
//
// A row group (kLanes rows) holds its columns in blocks of 256, the last may be shorter. A block
// holds first the scales of its column groups g (32 columns each), filled up to whole vectors:
//     plain types: per g f16 d[kLanes] (and m); MXFP4: per g the exponents;
//     K types: f16 d (and dmin), then per g the integer scales (and mins; with kHalves: those of
//     the second 16, and then a minimum is the byte's high nibble);
//   then payload[g]: kVectors vectors, together the codes w[0..7]; byte 4 * lane + c of w[j] is the
//   code of column 32g + 4j + c of the lane's row.
//     4 bits: vector j = w[j] | w[j + 4] << 4                                  (4 vectors)
//     5 bits: as 4, then one vector whose bit j is bit 4 of w[j]               (5 vectors)
//     6 bits: as 4, then two vectors: bits 4..5 of w[0..3] and of w[4..7]      (6 vectors)
//     2 bits: two vectors: bits 0..1 of w[0..3] and of w[4..7]                 (2 vectors)
//     3 bits: as 2, then one vector whose bit j is bit 2 of w[j]               (3 vectors)
//     8 bits: w[0..7]; as unsigned codes for DotBytes, as signed bytes for MulPairs (8 vectors)
// So decode reads one stream, in the order of addresses: with the scales of a row group behind all
// of its codes it read a quarter less in the same time.
// Bytes per weight equal GGUF's, to a few percent: decode is bound by reading them.
#pragma once

#include "kernels/cpu/dequantize.inl.h"

namespace rempart::kernels {

template <class V, class Format>
struct Packed {
  static constexpr int kL = V::kLanes;
  static constexpr int kBits = Format::kBits;
  static constexpr int kVectors = Format::kBits == 8 ? 8 : Format::kBits;
  static constexpr int64_t kPrefetchBytes = 4096;
  static constexpr int64_t kPayload = static_cast<int64_t>(kVectors) * V::kBytes;
  // Halves per lane in front (d, m), and bytes per lane for each group of a K block.
  static constexpr bool kTwoHalves = Format::kHasMin;
  static constexpr bool kTwoBytes = Format::kHasMin || Format::kHalves;
  static constexpr int64_t kHeader = (kTwoHalves ? 4 : (Format::kExponent ? 1 : 2)) * kL;
  static constexpr int64_t kGroupBytes = (kTwoBytes ? 2 : 1) * kL;
  // After Unpack: signed bytes where the tier multiplies such.
  static constexpr bool kSignedBytes =
      (Format::kBits == 8 || Format::kIsLookup) && !V::kHasDotBytes;
  // What remains to be subtracted from each code inside the matmul.
  static constexpr int kOffset = kSignedBytes ? 0 : Format::kOffset;

  static constexpr int64_t kBlockGroups = 8;

  // Of a block of that many groups.
  static constexpr int64_t ScalesBytes(int64_t groups) {
    const int64_t bytes = Format::kIsK ? kHeader + groups * kGroupBytes : groups * kHeader;
    return (bytes + V::kBytes - 1) / V::kBytes * V::kBytes;
  }
  static constexpr int64_t BlockBytes(int64_t groups) {
    return ScalesBytes(groups) + groups * kPayload;
  }
  // Rounded up to whole cache lines.
  static int64_t RowGroupBytes(int64_t groups) {
    const int64_t last = groups % kBlockGroups;
    const int64_t bytes =
        groups / kBlockGroups * BlockBytes(kBlockGroups) + (last > 0 ? BlockBytes(last) : 0);
    return (bytes + 63) / 64 * 64;
  }
  static int64_t BlockOffset(int64_t g) { return g / kBlockGroups * BlockBytes(kBlockGroups); }
  // Groups of the block that group g of `groups` is in.
  static int64_t GroupsOfBlock(int64_t g, int64_t groups) {
    const int64_t rest = groups - g / kBlockGroups * kBlockGroups;
    return rest < kBlockGroups ? rest : kBlockGroups;
  }
  static int64_t RowGroups(const WeightView& w) { return (w.rows + kL - 1) / kL; }

  // Of a group; with kHalves of its first and last 16 columns.
  struct Scales {
    typename V::F low, high;
    typename V::F min, min_high;  // kHasMin
  };

  // Of the g-th group of the block that begins at `scales`.
  static Scales LoadScales(const uint8_t* scales, int64_t g) {
    if constexpr (Format::kIsK) return LoadK(scales, scales + kHeader + g * kGroupBytes);
    Scales s;
    if constexpr (Format::kExponent) {
      // 2^(e - 128), but not below the smallest normal number.
      const typename V::F e = V::Sub(V::LoadU8(scales + g * kHeader), V::Set1(128.0f));
      s.low = s.high = V::Pow2(V::Round(V::Max(e, V::Set1(-126.0f))));
    } else {
      const auto* halves = reinterpret_cast<const uint16_t*>(scales + g * kHeader);
      s.low = s.high = V::LoadHalf(halves);
      if constexpr (Format::kHasMin) s.min = V::LoadHalf(halves + kL);
    }
    return s;
  }

  // What a thread will need `ahead` bytes on, the g-th part of a block: the hardware's own
  // look-ahead ends with the page.
  static void Prefetch(const uint8_t* block, int64_t g, int64_t ahead = kPrefetchBytes) {
    constexpr int64_t kPart = BlockBytes(kBlockGroups) / kBlockGroups;
    for (int64_t at = 0; at < kPart; at += 64) V::Prefetch(block + ahead + g * kPart + at);
  }

  static void Unpack(const uint8_t* payload, typename V::I* w) {
    if constexpr (Format::kBits == 8) {
      for (int j = 0; j < 8; ++j) w[j] = V::LoadBytes(payload + j * V::kBytes);
      return;
    }
    if constexpr (Format::kBits < 4) return UnpackPairs(payload, w);
    const typename V::I mask = V::SetByte(0x0f);
    for (int j = 0; j < 4; ++j) {
      const typename V::I pair = V::LoadBytes(payload + j * V::kBytes);
      w[j] = V::And(pair, mask);
      w[j + 4] = V::And(V::template ShiftRight16<4>(pair), mask);
    }
    if constexpr (Format::kIsLookup) {
      uint8_t values[16];
      for (int i = 0; i < 16; ++i) {
        values[i] = static_cast<uint8_t>(Format::kValues[i] + (kSignedBytes ? 0 : 128));
      }
      const typename V::I table = V::Table16(values);
      for (int j = 0; j < 8; ++j) w[j] = V::Lookup(table, w[j]);
    }
    if constexpr (Format::kBits == 5) {
      const typename V::I bits = V::LoadBytes(payload + 4 * V::kBytes);
      const typename V::I fifth = V::SetByte(0x10);
      w[0] = V::Or(w[0], V::And(V::template ShiftLeft16<4>(bits), fifth));
      w[1] = V::Or(w[1], V::And(V::template ShiftLeft16<3>(bits), fifth));
      w[2] = V::Or(w[2], V::And(V::template ShiftLeft16<2>(bits), fifth));
      w[3] = V::Or(w[3], V::And(V::template ShiftLeft16<1>(bits), fifth));
      w[4] = V::Or(w[4], V::And(bits, fifth));
      w[5] = V::Or(w[5], V::And(V::template ShiftRight16<1>(bits), fifth));
      w[6] = V::Or(w[6], V::And(V::template ShiftRight16<2>(bits), fifth));
      w[7] = V::Or(w[7], V::And(V::template ShiftRight16<3>(bits), fifth));
    }
    if constexpr (Format::kBits == 6) {
      const typename V::I two = V::SetByte(0x30);
      for (int half = 0; half < 2; ++half) {
        const typename V::I bits = V::LoadBytes(payload + (4 + half) * V::kBytes);
        typename V::I* to = w + 4 * half;
        to[0] = V::Or(to[0], V::And(V::template ShiftLeft16<4>(bits), two));
        to[1] = V::Or(to[1], V::And(V::template ShiftLeft16<2>(bits), two));
        to[2] = V::Or(to[2], V::And(bits, two));
        to[3] = V::Or(to[3], V::And(V::template ShiftRight16<2>(bits), two));
      }
    }
  }

  static void PackRowGroup(const WeightView& w, int64_t row_group, uint8_t* out) {
    const int64_t groups = w.cols / 32;
    const uint8_t* rows[kL];
    for (int lane = 0; lane < kL; ++lane) {
      const int64_t r = row_group * kL + lane;
      rows[lane] = r < w.rows ? Dequantizer<V>::Row(w, r) : nullptr;
    }
    for (int64_t g = 0; g < groups; ++g) {
      uint8_t* block = out + BlockOffset(g);
      uint8_t* payload =
          block + ScalesBytes(GroupsOfBlock(g, groups)) + g % kBlockGroups * kPayload;
      for (int lane = 0; lane < kL; ++lane) {
        uint8_t codes[32] = {};
        if (rows[lane] != nullptr) Format::Codes(rows[lane], g, codes);
        PutCodes(codes, payload + 4 * lane);
        PutScales(rows[lane], g, lane, block);
      }
    }
  }

 private:
  using F = typename V::F;
  using I = typename V::I;

  static Scales LoadK(const uint8_t* block, const uint8_t* bytes) {
    const auto* halves = reinterpret_cast<const uint16_t*>(block);
    const F d = V::LoadHalf(halves);
    Scales s;
    if constexpr (Format::kSignedScale) {
      const auto* factors = reinterpret_cast<const int8_t*>(bytes);
      s.low = s.high = V::Mul(d, V::LoadS8(factors));
      if constexpr (Format::kHalves) s.high = V::Mul(d, V::LoadS8(factors + kL));
      return s;
    }
    const F minus_dmin = V::Sub(V::Zero(), V::LoadHalf(halves + kL));
    const F first = V::LoadU8(bytes), second = V::LoadU8(bytes + kL);
    if constexpr (Format::kHalves) {
      const F first_min = HighNibble(first), second_min = HighNibble(second);
      s.low = V::Mul(d, V::Sub(first, V::Mul(first_min, V::Set1(16.0f))));
      s.high = V::Mul(d, V::Sub(second, V::Mul(second_min, V::Set1(16.0f))));
      s.min = V::Mul(minus_dmin, first_min);
      s.min_high = V::Mul(minus_dmin, second_min);
    } else {
      s.low = s.high = V::Mul(d, first);
      s.min = V::Mul(minus_dmin, second);
    }
    return s;
  }

  // floor(x / 16) of a byte x.
  static F HighNibble(F x) {
    return V::ToFloat(V::Round(V::Sub(V::Mul(x, V::Set1(1.0f / 16)), V::Set1(15.0f / 32))));
  }

  // 2 and 3 bits.
  static void UnpackPairs(const uint8_t* payload, I* w) {
    const I two = V::SetByte(3);
    for (int half = 0; half < 2; ++half) {
      const I bits = V::LoadBytes(payload + half * V::kBytes);
      w[4 * half] = V::And(bits, two);
      w[4 * half + 1] = V::And(V::template ShiftRight16<2>(bits), two);
      w[4 * half + 2] = V::And(V::template ShiftRight16<4>(bits), two);
      w[4 * half + 3] = V::And(V::template ShiftRight16<6>(bits), two);
    }
    if constexpr (Format::kBits == 3) {
      const I bits = V::LoadBytes(payload + 2 * V::kBytes);
      const I third = V::SetByte(4);
      w[0] = V::Or(w[0], V::And(V::template ShiftLeft16<2>(bits), third));
      w[1] = V::Or(w[1], V::And(V::template ShiftLeft16<1>(bits), third));
      w[2] = V::Or(w[2], V::And(bits, third));
      w[3] = V::Or(w[3], V::And(V::template ShiftRight16<1>(bits), third));
      w[4] = V::Or(w[4], V::And(V::template ShiftRight16<2>(bits), third));
      w[5] = V::Or(w[5], V::And(V::template ShiftRight16<3>(bits), third));
      w[6] = V::Or(w[6], V::And(V::template ShiftRight16<4>(bits), third));
      w[7] = V::Or(w[7], V::And(V::template ShiftRight16<5>(bits), third));
    }
  }

  // Codes of one row and group into the lane's 4 bytes of each vector, four codes at a time: words
  // of bytes are shifted only as far as keeps every code within its byte.
  static void PutCodes(const uint8_t* codes, uint8_t* to) {
    uint32_t c[8];
    std::memcpy(c, codes, sizeof(c));
    uint32_t out[kVectors] = {};
    if constexpr (Format::kBits == 8) {
      for (int j = 0; j < 8; ++j) out[j] = kSignedBytes ? c[j] ^ 0x80808080u : c[j];
    } else if constexpr (Format::kBits < 4) {
      for (int j = 0; j < 8; ++j) out[j / 4] |= (c[j] & 0x03030303u) << (2 * (j % 4));
      if constexpr (Format::kBits == 3) {
        for (int j = 0; j < 8; ++j) out[2] |= ((c[j] >> 2) & 0x01010101u) << j;
      }
    } else {
      for (int j = 0; j < 4; ++j) {
        out[j] = (c[j] & 0x0f0f0f0fu) | ((c[j + 4] & 0x0f0f0f0fu) << 4);
      }
    }
    if constexpr (Format::kBits == 5) {
      for (int j = 0; j < 8; ++j) out[4] |= ((c[j] >> 4) & 0x01010101u) << j;
    }
    if constexpr (Format::kBits == 6) {
      for (int j = 0; j < 8; ++j) {
        out[4 + j / 4] |= ((c[j] >> 4) & 0x03030303u) << (2 * (j % 4));
      }
    }
    for (int v = 0; v < kVectors; ++v) std::memcpy(to + v * V::kBytes, &out[v], 4);
  }

  static void PutScales(const uint8_t* row, int64_t g, int lane, uint8_t* scales) {
    const int64_t place = g % kBlockGroups;
    if constexpr (Format::kExponent) {
      scales[place * kHeader + lane] = row != nullptr ? Format::ScaleByte(row, g, 0) : 0;
      return;
    }
    const uint16_t d = row != nullptr ? Format::ScaleBits(row, g) : 0;
    const uint16_t m = row != nullptr ? Format::MinBits(row, g) : 0;
    uint8_t* halves = scales + (Format::kIsK ? 0 : place * kHeader);
    std::memcpy(halves + 2 * lane, &d, 2);
    if constexpr (kTwoHalves) std::memcpy(halves + 2 * kL + 2 * lane, &m, 2);
    if constexpr (Format::kIsK) {
      uint8_t* bytes = scales + kHeader + place * kGroupBytes;
      bytes[lane] = row != nullptr ? Format::ScaleByte(row, g, 0) : 0;
      if constexpr (kTwoBytes) bytes[kL + lane] = row != nullptr ? Format::MinByte(row, g) : 0;
    }
  }
};

template <class V>
int64_t PackedBytes(const WeightView& w) {
  int64_t bytes = 0;
  Formats<V>::Visit(w.type, [&](auto format) {
    using P = Packed<V, decltype(format)>;
    bytes = P::RowGroups(w) * P::RowGroupBytes(w.cols / 32);
  });
  return bytes;
}

template <class V>
void PackRows(const WeightView& w, void* packed, int64_t begin, int64_t end) {
  Formats<V>::Visit(w.type, [&](auto format) {
    using P = Packed<V, decltype(format)>;
    const int64_t bytes = P::RowGroupBytes(w.cols / 32);
    for (int64_t rg = begin / V::kLanes; rg * V::kLanes < end; ++rg) {
      P::PackRowGroup(w, rg, static_cast<uint8_t*>(packed) + rg * bytes);
    }
  });
}

}  // namespace rempart::kernels
