// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding, and the store of rotated keys and values into the paged cache.
#pragma once

#include <cmath>

#include "kernels/blocks.h"
#include "kernels/ops.h"

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

  static void ToHalf(const float* in, uint16_t* out, int64_t n) {
    int64_t i = 0;
    for (; i + V::kLanes <= n; i += V::kLanes) V::StoreHalf(out + i, V::Load(in + i));
    for (; i < n; ++i) out[i] = FloatToHalf(in[i]);
  }

  // One head of one token: k goes to column `slot` of [head_dim, 16], v to row `slot` of
  // [16, head_dim].
  template <class T>
  static void StoreHead(const T* k, const T* v, int64_t head_dim, int64_t slot, T* k_block,
                        T* v_block) {
    for (int64_t d = 0; d < head_dim; ++d) k_block[d * kKvBlockTokens + slot] = k[d];
    std::memcpy(v_block + slot * head_dim, v, static_cast<size_t>(head_dim) * sizeof(T));
  }

  static void KvStore(const KvStoreArgs& args, int64_t begin, int64_t end) {
    const KvView& kv = args.kv;
    const int64_t head_elements = kv.head_dim * kKvBlockTokens;
    for (int64_t t = begin; t < end; ++t) {
      const int64_t position = args.first_position + t;
      const int64_t slot = position % kKvBlockTokens;
      void* block = static_cast<uint8_t*>(kv.data) +
                    args.block_table[position / kKvBlockTokens] * kv.block_stride_bytes;
      for (int64_t h = 0; h < kv.kv_heads; ++h) {
        const float* k = args.k + t * args.k_stride + h * kv.head_dim;
        const float* v = args.v + t * args.v_stride + h * kv.head_dim;
        if (kv.type == DType::kF32) {
          float* heads = static_cast<float*>(block);
          StoreHead(k, v, kv.head_dim, slot, heads + h * head_elements,
                    heads + (kv.kv_heads + h) * head_elements);
        } else {
          uint16_t halves[2][256];
          ToHalf(k, halves[0], kv.head_dim);
          ToHalf(v, halves[1], kv.head_dim);
          uint16_t* heads = static_cast<uint16_t*>(block);
          StoreHead(halves[0], halves[1], kv.head_dim, slot, heads + h * head_elements,
                    heads + (kv.kv_heads + h) * head_elements);
        }
      }
    }
  }
};

}  // namespace rempart::kernels
