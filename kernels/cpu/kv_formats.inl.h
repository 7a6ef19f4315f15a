// SPDX-License-Identifier: Apache-2.0
// What attention and kv_store need to know of each type of KV cache. Elements are read as floats;
// of Q8 these are codes, and the scale of a token and head is applied to its score, and to its
// weight before values are added.
#pragma once

#include "kernels/blocks.h"
#include "kernels/ops.h"

namespace rempart::kernels {

template <class V>
struct KvFormats {
  using F = typename V::F;

  struct F32 {
    using Element = float;
    static constexpr bool kScaled = false;
    static F Load(const float* p) { return V::Load(p); }
    static float Value(float x) { return x; }
    static void Store(const float* in, int64_t n, float* out, float*) {
      std::memcpy(out, in, static_cast<size_t>(n) * sizeof(float));
    }
  };
  struct F16 {
    using Element = uint16_t;
    static constexpr bool kScaled = false;
    static F Load(const uint16_t* p) { return V::LoadHalf(p); }
    static float Value(uint16_t x) { return HalfToFloat(x); }
    static void Store(const float* in, int64_t n, uint16_t* out, float*) {
      int64_t i = 0;
      for (; i + V::kLanes <= n; i += V::kLanes) V::StoreHalf(out + i, V::Load(in + i));
      for (; i < n; ++i) out[i] = FloatToHalf(in[i]);
    }
  };
  struct BF16 {
    using Element = uint16_t;
    static constexpr bool kScaled = false;
    static F Load(const uint16_t* p) { return V::LoadBFloat16(p); }
    static float Value(uint16_t x) { return BFloat16ToFloat(x); }
    static void Store(const float* in, int64_t n, uint16_t* out, float*) {
      for (int64_t i = 0; i < n; ++i) out[i] = FloatToBFloat16(in[i]);
    }
  };
  struct Q8 {
    using Element = int8_t;
    static constexpr bool kScaled = true;
    static F Load(const int8_t* p) { return V::LoadS8(p); }
    static float Value(int8_t x) { return static_cast<float>(x); }
    static void Store(const float* in, int64_t n, int8_t* out, float* scale) {
      float largest = 0.0f;
      for (int64_t i = 0; i < n; ++i) {
        const float size = in[i] < 0 ? -in[i] : in[i];
        largest = size > largest ? size : largest;
      }
      *scale = largest / 127.0f;
      const F inverse = V::Set1(largest > 0.0f ? 127.0f / largest : 0.0f);
      int64_t i = 0;
      for (; i + V::kLanes <= n; i += V::kLanes) {
        V::StoreInt8(out + i, V::Round(V::Mul(V::Load(in + i), inverse)));
      }
      float rest[V::kLanes] = {};
      int8_t codes[V::kLanes];
      for (int64_t j = i; j < n; ++j) rest[j - i] = in[j];
      V::StoreInt8(codes, V::Round(V::Mul(V::Load(rest), inverse)));
      for (int64_t j = i; j < n; ++j) out[j] = codes[j - i];
    }
  };
  // Elements of K that were converted to float before.
  template <class K>
  struct Converted : F32 {
    static constexpr bool kScaled = K::kScaled;
  };

  template <class Fn>
  static void Visit(DType type, Fn fn) {
    if (type == DType::kF32) return fn(F32());
    if (type == DType::kBF16) return fn(BF16());
    if (type == DType::kQ8_0) return fn(Q8());
    fn(F16());
  }
};

// Where the parts of a head lie in a block; see KvView.
template <class Element>
struct KvBlockParts {
  Element* keys;        // [head_dim, 16]
  Element* values;      // [16, head_dim]
  float* key_scales;    // [16], of Q8
  float* value_scales;  // [16], of Q8
};

template <class V, class Element>
inline KvBlockParts<Element> KvPartsOf(const KvView& kv, int64_t block, int64_t kv_head) {
  auto* elements =
      reinterpret_cast<Element*>(static_cast<uint8_t*>(kv.data) + block * kv.block_stride_bytes);
  const int64_t head = kv.head_dim * kKvBlockTokens;
  auto* scales = reinterpret_cast<float*>(elements + 2 * kv.kv_heads * head);
  return {elements + kv_head * head, elements + (kv.kv_heads + kv_head) * head,
          scales + kv_head * kKvBlockTokens, scales + (kv.kv_heads + kv_head) * kKvBlockTokens};
}

}  // namespace rempart::kernels
