// SPDX-License-Identifier: Apache-2.0
// Weights to F32, bit for bit as the reference does. 32 elements at a time: codes, then one
// multiply and one add, each rounded by itself.
#pragma once

#include "kernels/cpu/formats.inl.h"

namespace rempart::kernels {

template <class V>
struct Dequantizer {
  // Elements [first, first + count) of a row; both are multiples of 32 for quantised types.
  static void Elements(DType type, const void* row, int64_t first, int64_t count, float* out) {
    const bool quantized = Formats<V>::Visit(type, [&](auto format) {
      using Format = decltype(format);
      for (int64_t i = 0; i < count; i += 32) Group<Format>(row, (first + i) / 32, out + i);
    });
    if (quantized) return;
    if (type == DType::kF32) {
      std::memcpy(out, static_cast<const float*>(row) + first,
                  static_cast<size_t>(count) * sizeof(float));
      return;
    }
    const uint16_t* in = static_cast<const uint16_t*>(row) + first;
    int64_t i = 0;
    if (type == DType::kF16) {
      for (; i + V::kLanes <= count; i += V::kLanes) V::Store(out + i, V::LoadHalf(in + i));
      for (; i < count; ++i) out[i] = HalfToFloat(in[i]);
    } else {
      for (; i < count; ++i) out[i] = BFloat16ToFloat(in[i]);
    }
  }

  static void Rows(const WeightView& w, float* out, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      Elements(w.type, Row(w, r), 0, w.cols, out + (r - begin) * w.cols);
    }
  }

  static void Embed(const WeightView& w, const int32_t* ids, float scale, float* out,
                    int64_t out_stride, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* to = out + i * out_stride;
      Elements(w.type, Row(w, ids[i]), 0, w.cols, to);
      if (scale == 1.0f) continue;
      for (int64_t c = 0; c < w.cols; ++c) to[c] *= scale;
    }
  }

  static const uint8_t* Row(const WeightView& w, int64_t row) {
    return static_cast<const uint8_t*>(w.data) + row * RowBytes(w.type, w.cols);
  }

 private:
  template <class Format>
  static void Group(const void* row, int64_t g, float* out) {
    uint8_t codes[32];
    Format::Codes(row, g, codes);
    const float low = Format::Scale(row, g, 0);
    const float high = Format::Scale(row, g, Format::kHalves ? 1 : 0);
    float values[32];
    if constexpr (Format::kIsLookup) {
      for (int i = 0; i < 32; ++i) values[i] = static_cast<float>(Format::kValues[codes[i]]);
    } else {
      for (int i = 0; i < 32; ++i) values[i] = static_cast<float>(codes[i] - Format::kOffset);
    }
    for (int i = 0; i < 16; ++i) values[i] *= low;
    for (int i = 16; i < 32; ++i) values[i] *= high;
    if constexpr (Format::kHasMin) {
      const float min_low = Format::Min(row, g, 0);
      const float min_high = Format::Min(row, g, Format::kHalves ? 1 : 0);
      for (int i = 0; i < 16; ++i) values[i] += min_low;
      for (int i = 16; i < 32; ++i) values[i] += min_high;
    }
    std::memcpy(out, values, sizeof(values));
  }
};

}  // namespace rempart::kernels
