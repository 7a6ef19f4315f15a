// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding, and the store of rotated keys and values into the paged cache.
#pragma once

#include <cmath>

#include "kernels/cpu/kv_formats.inl.h"

namespace rempart::kernels {

template <class V>
struct RopeKernels {
  using F = typename V::F;

  static void Angles(const int32_t* positions, const float* inverse_frequency, int64_t half_dim,
                     float scale, float* cos, float* sin, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t i = 0; i < half_dim; ++i) {
        const float angle = static_cast<float>(positions[t]) * inverse_frequency[i];
        cos[t * half_dim + i] = std::cos(angle) * scale;
        sin[t * half_dim + i] = std::sin(angle) * scale;
      }
    }
  }

  static void Halves(float* x, const float* cos, const float* sin, int64_t half) {
    int64_t i = 0;
    for (; i + V::kLanes <= half; i += V::kLanes) {
      const F a = V::Load(x + i), b = V::Load(x + i + half);
      const F c = V::Load(cos + i), s = V::Load(sin + i);
      V::Store(x + i, V::Sub(V::Mul(a, c), V::Mul(b, s)));
      V::Store(x + i + half, V::Add(V::Mul(a, s), V::Mul(b, c)));
    }
    for (; i < half; ++i) {
      const float a = x[i], b = x[i + half];
      x[i] = a * cos[i] - b * sin[i];
      x[i + half] = a * sin[i] + b * cos[i];
    }
  }

  static void Interleaved(float* x, const float* cos, const float* sin, int64_t half) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = a * cos[i] - b * sin[i];
      x[2 * i + 1] = a * sin[i] + b * cos[i];
    }
  }

  static void Rope(const RopeArgs& args, int64_t begin, int64_t end) {
    const int64_t half = args.rotary_dim / 2;
    for (int64_t t = begin; t < end; ++t) {
      const float* cos = args.cos + t * half;
      const float* sin = args.sin + t * half;
      for (int64_t h = 0; h < args.num_heads; ++h) {
        float* x = args.x + t * args.x_stride + h * args.head_dim;
        if (args.layout == RopeLayout::kHalves) {
          Halves(x, cos, sin, half);
        } else {
          Interleaved(x, cos, sin, half);
        }
      }
    }
  }

  template <class K>
  static void StoreTokens(const KvStoreArgs& args, int64_t begin, int64_t end) {
    using Element = typename K::Element;
    const KvView& kv = args.kv;
    for (int64_t t = begin; t < end; ++t) {
      const int64_t position = args.first_position + t;
      const int64_t slot = position % kKvBlockTokens;
      const int32_t block = args.block_table[position / kKvBlockTokens];
      for (int64_t h = 0; h < kv.kv_heads; ++h) {
        const KvBlockParts<Element> to = KvPartsOf<V, Element>(kv, block, h);
        Element key[256];
        K::Store(args.k + t * args.k_stride + h * kv.head_dim, kv.head_dim, key,
                 to.key_scales + slot);
        for (int64_t d = 0; d < kv.head_dim; ++d) to.keys[d * kKvBlockTokens + slot] = key[d];
        K::Store(args.v + t * args.v_stride + h * kv.head_dim, kv.head_dim,
                 to.values + slot * kv.head_dim, to.value_scales + slot);
      }
    }
  }

  static void KvStore(const KvStoreArgs& args, int64_t begin, int64_t end) {
    KvFormats<V>::Visit(args.kv.type,
                        [&](auto format) { StoreTokens<decltype(format)>(args, begin, end); });
  }
};

}  // namespace rempart::kernels
