// SPDX-License-Identifier: Apache-2.0
// Exact int32 dot products of unsigned codes (or signed bytes) with int8 activations, in the two
// ways that instruction sets offer: DotBytes, or MulPairs with 16-bit sums.
#pragma once

#include "kernels/cpu/packed.inl.h"

namespace rempart::kernels {

// Vectors of codes below 2^bits whose products with |a| <= 127, two to a pair, may be added up in
// 16 bits before they overflow.
constexpr int RunOfPairs(int bits) { return bits <= 4 ? 8 : (bits == 5 ? 4 : 2); }

constexpr int OffsetShift(int offset) {
  int shift = 0;
  while ((1 << shift) < offset) ++shift;
  return shift;
}

// What a panel holds for codes w. With DotBytes every type that has an offset is moved to the
// offset 128, which ActivationBlock has the sums for; with MulPairs 16-bit sums need small codes.
template <class V, class P>
inline typename V::I TileCodes(typename V::I w) {
  if constexpr (V::kHasDotBytes && P::kOffset != 0 && P::kOffset != 128) {
    return V::AddBytes(w, V::SetByte(128 - P::kOffset));
  } else {
    return w;
  }
}

// Exact int32 dot product per lane of kCount vectors of codes (signed bytes when kSigned) with
// 4 * kCount activations.
template <class V, int kBits, bool kSigned, int kCount>
inline typename V::I DotCodes(const typename V::I* w, const int8_t* a) {
  using I = typename V::I;
  if constexpr (V::kHasDotBytes) {
    I sum = V::ZeroInt();
    for (int j = 0; j < kCount; ++j) sum = V::DotBytes(sum, w[j], V::BroadcastBytes4(a + 4 * j));
    return sum;
  } else if constexpr (kSigned) {
    // |w| <= 128 and |a| <= 127, so a pair of products stays below 2^15.
    I sum = V::ZeroInt();
    for (int j = 0; j < kCount; ++j) {
      const I x = V::Sign8(V::BroadcastBytes4(a + 4 * j), w[j]);
      sum = V::AddInt(sum, V::SumPairs(V::MulPairs(V::Abs8(w[j]), x)));
    }
    return sum;
  } else {
    constexpr int kRun = RunOfPairs(kBits);
    I sum = V::ZeroInt();
    for (int first = 0; first < kCount; first += kRun) {
      I run = V::MulPairs(w[first], V::BroadcastBytes4(a + 4 * first));
      for (int j = first + 1; j < first + kRun && j < kCount; ++j) {
        run = V::Add16(run, V::MulPairs(w[j], V::BroadcastBytes4(a + 4 * j)));
      }
      sum = V::AddInt(sum, V::SumPairs(run));
    }
    return sum;
  }
}

// Sum of the activations that vectors [first, first + count) of a group meet.
inline const int32_t* ActivationSum(const ActivationBlock& a, int first, int count) {
  return count == 8 ? &a.sum : (first == 0 ? &a.sum_low : &a.sum_high);
}

template <class V>
inline typename V::F ScaledSum(typename V::F scale, const int32_t* sum) {
  return V::Mul(scale, V::ToFloat(V::BroadcastBytes4(sum)));
}

inline const int32_t* MinusSum(const ActivationBlock& a, int first, int count) {
  return count == 8 ? &a.minus_sum : (first == 0 ? &a.minus_sum_low : &a.minus_sum_high);
}

// dot[t][r] = sum over vectors [kFirst, kFirst + kCount) of (code - offset) * activation for kT
// tokens and kR row groups. `codes` is [8][kForms][kR][V::kBytes]: as TileCodes made them, and with
// two forms the magnitudes of signed bytes.
template <class V, class P, int kT, int kR, int kForms, int kFirst, int kCount>
inline void DotTile(const uint8_t* codes, const ActivationBlock* x, int64_t x_stride,
                    typename V::I (*dot)[kR]) {
  using I = typename V::I;
  const auto load = [&](int j, int r, int form = 0) {
    return V::LoadBytes(codes + ((j * kForms + form) * kR + r) * V::kBytes);
  };
  if constexpr (V::kHasDotBytes) {
#pragma GCC unroll 8
    for (int t = 0; t < kT; ++t) {
      const int32_t* minus_sum = MinusSum(x[t * x_stride], kFirst, kCount);
      for (int r = 0; r < kR; ++r) {
        dot[t][r] = P::kOffset != 0 ? V::BroadcastBytes4(minus_sum) : V::ZeroInt();
      }
    }
#pragma GCC unroll 8
    for (int j = kFirst; j < kFirst + kCount; ++j) {
      I w[kR];
      for (int r = 0; r < kR; ++r) w[r] = load(j, r);
#pragma GCC unroll 8
      for (int t = 0; t < kT; ++t) {
        const I a = V::BroadcastBytes4(x[t * x_stride].q + 4 * j);
        for (int r = 0; r < kR; ++r) dot[t][r] = V::DotBytes(dot[t][r], w[r], a);
      }
    }
  } else {
    constexpr int kLimit = P::kSignedBytes ? 1 : RunOfPairs(P::kBits);
    constexpr int kRun = kLimit < kCount ? kLimit : kCount;
    // V::Keep holds each sum in its register: left alone, the compiler makes all products first and
    // spills them.
#pragma GCC unroll 8
    for (int first = kFirst; first < kFirst + kCount; first += kRun) {
      I run[kT][kR];
#pragma GCC unroll 8
      for (int i = 0; i < kRun; ++i) {
        const int j = first + i;
        I w[kR], size[kR];
        for (int r = 0; r < kR; ++r) {
          w[r] = load(j, r);
          size[r] = !P::kSignedBytes ? w[r] : (kForms == 2 ? load(j, r, 1) : V::Abs8(w[r]));
        }
#pragma GCC unroll 8
        for (int t = 0; t < kT; ++t) {
          const I a = V::BroadcastBytes4(x[t * x_stride].q + 4 * j);
          for (int r = 0; r < kR; ++r) {
            const I pairs = V::MulPairs(size[r], P::kSignedBytes ? V::Sign8(a, w[r]) : a);
            run[t][r] = i == 0 ? pairs : V::Add16(run[t][r], pairs);
            if constexpr (kRun > 1) V::Keep(run[t][r]);
          }
        }
      }
#pragma GCC unroll 8
      for (int t = 0; t < kT; ++t) {
        for (int r = 0; r < kR; ++r) {
          const I sum = V::SumPairs(run[t][r]);
          dot[t][r] = first == kFirst ? sum : V::AddInt(dot[t][r], sum);
          V::Keep(dot[t][r]);
        }
      }
    }
    if constexpr (P::kOffset != 0) {
#pragma GCC unroll 8
      for (int t = 0; t < kT; ++t) {
        const I sum = V::template ShiftLeft32<OffsetShift(P::kOffset)>(
            V::BroadcastBytes4(ActivationSum(x[t * x_stride], kFirst, kCount)));
        for (int r = 0; r < kR; ++r) dot[t][r] = V::SubInt(dot[t][r], sum);
      }
    }
  }
}

// Stores one row group of one token, with its bias; rows beyond the last are left alone.
template <class V>
inline void PutLanes(const MatmulArgs& args, typename V::F value, int64_t token, int64_t row) {
  float* y = args.y + token * args.y_stride + row;
  if (row + V::kLanes <= args.w.rows) {
    if (args.bias != nullptr) value = V::Add(value, V::Load(args.bias + row));
    V::Store(y, value);
    return;
  }
  float lanes[V::kLanes];
  V::Store(lanes, value);
  for (int64_t i = 0; row + i < args.w.rows; ++i) {
    y[i] = args.bias != nullptr ? lanes[i] + args.bias[row + i] : lanes[i];
  }
}

}  // namespace rempart::kernels
