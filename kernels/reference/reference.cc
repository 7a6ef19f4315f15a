// SPDX-License-Identifier: Apache-2.0
// Every op in the plainest form that is right. Sums are in double, so that a fast kernel is
// compared with the mathematical value and not with another rounding.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/blocks.h"
#include "kernels/ops.h"
#include "kernels/reference/dequantize.h"
#include "kernels/sample_math.h"

namespace rempart::kernels {
namespace {

const void* Row(const WeightView& w, int64_t row) {
  return static_cast<const uint8_t*>(w.data) + row * RowBytes(w.type, w.cols);
}

void Dequantize(const WeightView& w, float* out, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    DequantizeRow(w.type, Row(w, r), w.cols, out + (r - begin) * w.cols);
  }
}

void Embed(const WeightView& w, const int32_t* ids, float scale, float* out, int64_t out_stride,
           int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    DequantizeRow(w.type, Row(w, ids[i]), w.cols, out + i * out_stride);
    for (int64_t c = 0; c < w.cols; ++c) out[i * out_stride + c] *= scale;
  }
}

ActivationBlock QuantizeBlock(const float* x) {
  ActivationBlock block = {};
  float largest = 0.0f;
  for (int i = 0; i < 32; ++i) largest = std::max(largest, std::fabs(x[i]));
  block.scale = largest / 127.0f;
  const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
  for (int i = 0; i < 32; ++i) {
    block.q[i] = static_cast<int8_t>(std::nearbyint(x[i] * inverse));
    block.sum += block.q[i];
    if (i < 16) block.sum_low += block.q[i];
  }
  block.sum_high = block.sum - block.sum_low;
  block.minus_sum = -128 * block.sum;
  block.minus_sum_low = -128 * block.sum_low;
  block.minus_sum_high = -128 * block.sum_high;
  block.scaled_sum = block.scale * static_cast<float>(block.sum);
  return block;
}

void Quantize(const float* x, int64_t x_stride, int64_t cols, ActivationBlock* xq,
              int64_t xq_stride, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    for (int64_t b = 0; b < cols / kActivationGroup; ++b) {
      xq[t * xq_stride + b] = QuantizeBlock(x + t * x_stride + b * kActivationGroup);
    }
  }
}

int64_t PackedBytes(const WeightView&) { return 0; }
void PackRows(const WeightView&, void*, int64_t, int64_t) {}

double Dot(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

void MatmulExact(const MatmulArgs& args, int64_t begin, int64_t end) {
  std::vector<float> row(args.w.cols);
  for (int64_t r = begin; r < end; ++r) {
    DequantizeRow(args.w.type, Row(args.w, r), args.w.cols, row.data());
    for (int64_t t = 0; t < args.num_tokens; ++t) {
      const double dot = Dot(args.x + t * args.x_stride, row.data(), args.w.cols);
      args.y[t * args.y_stride + r] = static_cast<float>(dot + (args.bias ? args.bias[r] : 0.0f));
    }
  }
}

// With activations rounded to BF16.
void MatmulOfBFloat16(const MatmulArgs& args, int64_t begin, int64_t end) {
  std::vector<float> x(args.num_tokens * args.w.cols);
  for (int64_t t = 0; t < args.num_tokens; ++t) {
    for (int64_t c = 0; c < args.w.cols; ++c) {
      x[t * args.w.cols + c] = BFloat16ToFloat(FloatToBFloat16(args.x[t * args.x_stride + c]));
    }
  }
  MatmulArgs rounded = args;
  rounded.x = x.data();
  rounded.x_stride = args.w.cols;
  MatmulExact(rounded, begin, end);
}

void MatmulFast(const MatmulArgs& args, int64_t begin, int64_t end) {
  if (args.w.type == DType::kBF16) return MatmulOfBFloat16(args, begin, end);
  if (!IsQuantized(args.w.type)) return MatmulExact(args, begin, end);
  std::vector<float> row(args.w.cols);
  for (int64_t r = begin; r < end; ++r) {
    DequantizeRow(args.w.type, Row(args.w, r), args.w.cols, row.data());
    for (int64_t t = 0; t < args.num_tokens; ++t) {
      double sum = args.bias ? args.bias[r] : 0.0f;
      for (int64_t c = 0; c < args.w.cols; ++c) {
        const ActivationBlock& block = args.xq[t * args.xq_stride + c / kActivationGroup];
        sum += static_cast<double>(row[c]) * block.scale * block.q[c % kActivationGroup];
      }
      args.y[t * args.y_stride + r] = static_cast<float>(sum);
    }
  }
}

void RmsNorm(const float* x, int64_t x_stride, const float* weight, float eps, int64_t cols,
             float* out, int64_t out_stride, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const float* in = x + r * x_stride;
    const double mean = Dot(in, in, cols) / static_cast<double>(cols);
    const double inverse = 1.0 / std::sqrt(mean + eps);
    for (int64_t i = 0; i < cols; ++i) {
      out[r * out_stride + i] = static_cast<float>(in[i] * inverse * (weight ? weight[i] : 1.0f));
    }
  }
}

void RopeAngles(const int32_t* positions, const float* inverse_frequency, int64_t half_dim,
                float scale, float* cos, float* sin, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    for (int64_t i = 0; i < half_dim; ++i) {
      // The angle is rounded to F32 first, as transformers and llama.cpp do.
      const float angle = static_cast<float>(positions[t]) * inverse_frequency[i];
      cos[t * half_dim + i] = std::cos(angle) * scale;
      sin[t * half_dim + i] = std::sin(angle) * scale;
    }
  }
}

void Rope(const RopeArgs& args, int64_t begin, int64_t end) {
  const int64_t half = args.rotary_dim / 2;
  const bool interleaved = args.layout == RopeLayout::kInterleaved;
  for (int64_t t = begin; t < end; ++t) {
    for (int64_t h = 0; h < args.num_heads; ++h) {
      float* x = args.x + t * args.x_stride + h * args.head_dim;
      for (int64_t i = 0; i < half; ++i) {
        float* a = interleaved ? x + 2 * i : x + i;
        float* b = interleaved ? x + 2 * i + 1 : x + i + half;
        const float c = args.cos[t * half + i];
        const float s = args.sin[t * half + i];
        const float rotated = *a * c - *b * s;
        *b = *a * s + *b * c;
        *a = rotated;
      }
    }
  }
}

// Element offset of (kv head, dim, token in block) in the K part and in the V part of a block.
int64_t KIndex(const KvView& kv, int64_t head, int64_t dim, int64_t slot) {
  return (head * kv.head_dim + dim) * kKvBlockTokens + slot;
}
int64_t VIndex(const KvView& kv, int64_t head, int64_t dim, int64_t slot) {
  return ((kv.kv_heads + head) * kKvBlockTokens + slot) * kv.head_dim + dim;
}

uint8_t* KvBlock(const KvView& kv, const int32_t* block_table, int64_t position) {
  return static_cast<uint8_t*>(kv.data) +
         block_table[position / kKvBlockTokens] * kv.block_stride_bytes;
}

// Of kQ8_0; head counts those of K, then those of V.
float* Q8Scale(const KvView& kv, uint8_t* block, int64_t head, int64_t slot) {
  auto* scales = reinterpret_cast<float*>(block + 2 * kv.kv_heads * kv.head_dim * kKvBlockTokens);
  return scales + head * kKvBlockTokens + slot;
}

template <class T>
void PutAs(uint8_t* block, int64_t index, T value) {
  std::memcpy(block + index * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
}
template <class T>
T GetAs(const uint8_t* block, int64_t index) {
  T value;
  std::memcpy(&value, block + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

// `inverse` is that of the scale of kQ8_0.
void Put(DType type, uint8_t* block, int64_t index, float value, float inverse) {
  if (type == DType::kF32) {
    PutAs(block, index, value);
  } else if (type == DType::kQ8_0) {
    PutAs(block, index, static_cast<int8_t>(std::nearbyint(value * inverse)));
  } else {
    PutAs(block, index, type == DType::kF16 ? FloatToHalf(value) : FloatToBFloat16(value));
  }
}

float Get(DType type, const uint8_t* block, int64_t index) {
  if (type == DType::kF32) return GetAs<float>(block, index);
  if (type == DType::kQ8_0) return GetAs<int8_t>(block, index);
  const auto half = GetAs<uint16_t>(block, index);
  return type == DType::kF16 ? HalfToFloat(half) : BFloat16ToFloat(half);
}

float Largest(const float* x, int64_t n) {
  float largest = 0.0f;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::fabs(x[i]));
  return largest;
}

void KvStore(const KvStoreArgs& args, int64_t begin, int64_t end) {
  const KvView& kv = args.kv;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t position = args.first_position + t;
    const int64_t slot = position % kKvBlockTokens;
    uint8_t* block = KvBlock(kv, args.block_table, position);
    for (int64_t h = 0; h < kv.kv_heads; ++h) {
      const float* k = args.k + t * args.k_stride + h * kv.head_dim;
      const float* v = args.v + t * args.v_stride + h * kv.head_dim;
      const float k_largest = Largest(k, kv.head_dim);
      const float v_largest = Largest(v, kv.head_dim);
      if (kv.type == DType::kQ8_0) {
        *Q8Scale(kv, block, h, slot) = k_largest / 127.0f;
        *Q8Scale(kv, block, kv.kv_heads + h, slot) = v_largest / 127.0f;
      }
      for (int64_t d = 0; d < kv.head_dim; ++d) {
        Put(kv.type, block, KIndex(kv, h, d, slot), k[d], k_largest > 0 ? 127.0f / k_largest : 0);
        Put(kv.type, block, VIndex(kv, h, d, slot), v[d], v_largest > 0 ? 127.0f / v_largest : 0);
      }
    }
  }
}

void AttendOne(const AttentionArgs& args, int64_t head, int64_t token) {
  const KvView& kv = args.kv;
  const int64_t kv_head = head / (args.num_heads / kv.kv_heads);
  const int64_t last = args.first_position + token;
  const int64_t first = args.window > 0 ? std::max<int64_t>(0, last - args.window + 1) : 0;
  const float* q = args.q + token * args.q_stride + head * kv.head_dim;
  const bool is_q8 = kv.type == DType::kQ8_0;
  std::vector<double> scores;
  double largest = -std::numeric_limits<double>::infinity();
  for (int64_t p = first; p <= last; ++p) {
    uint8_t* block = KvBlock(kv, args.block_table, p);
    const int64_t slot = p % kKvBlockTokens;
    double score = 0;
    for (int64_t d = 0; d < kv.head_dim; ++d) {
      score += static_cast<double>(q[d]) * Get(kv.type, block, KIndex(kv, kv_head, d, slot));
    }
    score *= args.scale;
    if (is_q8) score *= *Q8Scale(kv, block, kv_head, slot);
    if (args.softcap > 0) score = args.softcap * std::tanh(score / args.softcap);
    largest = std::max(largest, score);
    scores.push_back(score);
  }
  double sum = 0;
  for (double& score : scores) sum += score = std::exp(score - largest);
  float* out = args.out + token * args.out_stride + head * kv.head_dim;
  for (int64_t d = 0; d < kv.head_dim; ++d) {
    double value = 0;
    for (int64_t p = first; p <= last; ++p) {
      uint8_t* block = KvBlock(kv, args.block_table, p);
      const int64_t slot = p % kKvBlockTokens;
      const double scale = is_q8 ? *Q8Scale(kv, block, kv.kv_heads + kv_head, slot) : 1.0;
      value += scores[p - first] * scale * Get(kv.type, block, VIndex(kv, kv_head, d, slot));
    }
    out[d] = static_cast<float>(value / sum);
  }
}

void Attention(const AttentionArgs& args, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    AttendOne(args, item / args.num_tokens, item % args.num_tokens);
  }
}

double Silu(double x) { return x / (1.0 + std::exp(-x)); }

double GeluTanh(double x) {
  constexpr double kSqrt2OverPi = 0.79788456080286535588;
  return 0.5 * x * (1.0 + std::tanh(kSqrt2OverPi * (x + 0.044715 * x * x * x)));
}

template <double (*Act)(double)>
void ActMul(const float* gate, const float* up, int64_t in_stride, int64_t cols, float* out,
            int64_t out_stride, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t i = 0; i < cols; ++i) {
      const double value = Act(gate[r * in_stride + i]) * up[r * in_stride + i];
      out[r * out_stride + i] = static_cast<float>(value);
    }
  }
}

void Add(const float* a, const float* b, float* out, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) out[i] = a[i] + b[i];
}

void Scale(float* x, float factor, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) x[i] *= factor;
}

void Softcap(float* x, float cap, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    x[i] = static_cast<float>(cap * std::tanh(static_cast<double>(x[i]) / cap));
  }
}

float Softmax(float* x, int64_t n) {
  const double largest = *std::max_element(x, x + n);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(x[i] - largest);
  for (int64_t i = 0; i < n; ++i) x[i] = static_cast<float>(std::exp(x[i] - largest) / sum);
  return static_cast<float>(largest + std::log(sum));
}

int64_t Argmax(const float* x, int64_t n) {
  if (std::any_of(x, x + n, [](float value) { return std::isnan(value); })) return -1;
  return std::max_element(x, x + n) - x;
}

uint64_t Weigh(const float* logits, int64_t n, float max, float temperature, float* weights) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    weights[i] = ExpOfNegative((logits[i] - max) / temperature);
    sum += FixedWeight(weights[i]);
  }
  return sum;
}

}  // namespace

const Ops& ReferenceOps() {
  static constexpr Ops kOps = {
      .name = "reference",
      .description = "plain C++, sums in double",
      .embed = Embed,
      .dequantize = Dequantize,
      .quantize = Quantize,
      .round = nullptr,
      .packed_bytes = PackedBytes,
      .pack_rows = PackRows,
      .matmul_exact = MatmulExact,
      .matmul_fast = MatmulFast,
      .rms_norm = RmsNorm,
      .rope_angles = RopeAngles,
      .rope = Rope,
      .kv_store = KvStore,
      .attention = Attention,
      .silu_mul = ActMul<Silu>,
      .gelu_tanh_mul = ActMul<GeluTanh>,
      .add = Add,
      .scale = Scale,
      .softcap = Softcap,
      .softmax = Softmax,
      .argmax = Argmax,
      .weigh = Weigh,
  };
  return kOps;
}

}  // namespace rempart::kernels
