// SPDX-License-Identifier: Apache-2.0
// The table of compute kernels that a model is made of, and the only header of kernels/ that the
// rest of the worker includes. A table is chosen once at start (BestOps or ChooseOps) and is
// constant.
//
// Invariants of every table:
//  1. Kernels allocate nothing, keep no state and start no thread. Work is split by the caller: an
//  op
//     that takes [begin, end) computes only those items, and any split gives the same bits.
//  2. Batch invariance: the result for one token depends on that token alone, never on how many
//     others are computed in the same call.
//  3. Inputs and outputs do not overlap unless an op says that it works in place.
//  4. Strides are in elements; data is row-major; [a, b, c] names the dimensions outermost first.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace rempart::kernels {

// Storage types of weights. Quantised blocks are laid out bit for bit as in a GGUF file.
enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kQ2_K,
  kQ3_K,
  kIQ4_NL,
  kIQ4_XS,
  kMXFP4
};

inline constexpr int kDTypeCount = 16;

const char* DTypeName(DType type);
// Elements and bytes of one block: 1 for plain numbers, 32 or 256 for quantised types.
int64_t BlockElements(DType type);
int64_t BlockBytes(DType type);
// Bytes of a row of `cols` elements; cols is a multiple of BlockElements(type).
int64_t RowBytes(DType type, int64_t cols);
bool IsQuantized(DType type);

// A weight matrix [rows, cols] in its storage type; does not own its bytes. Rows are contiguous.
struct WeightView {
  const void* data = nullptr;
  DType type = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
};

// 32 consecutive activations of one token as int8: x[i] is about scale * q[i], |q[i]| <= 127.
// A cache line: a kernel takes all that it needs of a group from it by broadcasting loads.
struct alignas(64) ActivationBlock {
  float scale;
  float scaled_sum;   // scale * sum
  int32_t sum;        // q[0] + ... + q[31]
  int32_t sum_low;    // q[0] + ... + q[15]
  int32_t sum_high;   // q[16] + ... + q[31]
  int32_t minus_sum;  // -128 times each of the sums
  int32_t minus_sum_low;
  int32_t minus_sum_high;
  int8_t q[32];
};
static_assert(sizeof(ActivationBlock) == 64);
inline constexpr int64_t kActivationGroup = 32;

// Elements between tokens whose activations are rounded to BF16. A row is followed by zeros to the
// next multiple of 32, and is no multiple of 2 KiB long: neighbours would share sets of the cache.
constexpr int64_t RoundedStride(int64_t cols) {
  const int64_t stride = (cols + 31) / 32 * 32;
  return stride % 1024 == 0 ? stride + 32 : stride;
}

// Row ranges of a matmul begin at a multiple of this, and end at one or at the last row.
inline constexpr int64_t kRowAlign = 16;

struct MatmulArgs {
  WeightView w;                         // [rows, cols]
  const void* packed = nullptr;         // what pack_rows wrote for w; null where packed_bytes is 0
  const float* x = nullptr;             // [num_tokens, cols], read for plain weights or by exact
  int64_t x_stride = 0;                 // elements between tokens
  const ActivationBlock* xq = nullptr;  // [num_tokens, cols / 32], read by matmul_fast
  int64_t xq_stride = 0;                // blocks between tokens
  // [num_tokens, cols]: x as `round` wrote it, for matmul_fast over BF16 weights; null: it rounds.
  const uint16_t* x_rounded = nullptr;
  int64_t x_rounded_stride = 0;  // RoundedStride(cols)
  const float* bias = nullptr;   // [rows] or null
  float* y = nullptr;            // [num_tokens, rows]
  int64_t y_stride = 0;          // elements between tokens
  int64_t num_tokens = 0;
};

enum class RopeLayout : uint8_t {
  kInterleaved,  // rotates (x[2i], x[2i+1]): GGUF "llama"
  kHalves,       // rotates (x[i], x[i + rotary_dim/2]): GPT-NeoX, Gemma, Qwen
};

struct RopeArgs {
  float* x = nullptr;          // [num_tokens, num_heads, head_dim], in place
  int64_t x_stride = 0;        // elements between tokens
  const float* cos = nullptr;  // [num_tokens, rotary_dim / 2]
  const float* sin = nullptr;
  int64_t num_heads = 0;
  int64_t head_dim = 0;
  int64_t rotary_dim = 0;  // even, <= head_dim; the rest of a head is left alone
  RopeLayout layout = RopeLayout::kInterleaved;
};

// Tokens per KV block.
inline constexpr int64_t kKvBlockTokens = 16;

// The paged KV cache of one layer. Block `id` begins at data + id * block_stride_bytes and holds
//   K [kv_heads, head_dim, 16 tokens]   (token innermost: one lane per key in the score kernel)
//   V [kv_heads, 16 tokens, head_dim]
// in `type`. Written by kv_store, read by attention. Aligned to 64 bytes for full speed.
// kQ8_0 stands for one int8 per element and one F32 scale per token and head; after V follow
//   scales of K [kv_heads, 16 tokens], scales of V [kv_heads, 16 tokens].
struct KvView {
  void* data = nullptr;
  int64_t block_stride_bytes = 0;
  DType type = DType::kF16;  // kF32, kF16, kBF16 or kQ8_0
  int64_t kv_heads = 0;
  int64_t head_dim = 0;  // a multiple of 8, at most 256
};
// Bytes of one block of one layer (K and V).
int64_t KvBlockBytes(DType type, int64_t kv_heads, int64_t head_dim);

struct KvStoreArgs {
  KvView kv;
  const float* k = nullptr;  // [num_tokens, kv_heads, head_dim], already rotated
  int64_t k_stride = 0;
  const float* v = nullptr;  // [num_tokens, kv_heads, head_dim]
  int64_t v_stride = 0;
  const int32_t* block_table = nullptr;  // block of position p is block_table[p / 16]
  int64_t first_position = 0;            // of token 0; the others follow
};

// Causal attention of consecutive tokens of one sequence over its paged KV, which already holds the
// keys of these tokens. For the query of head h at position p:
//   s[j] = scale * dot(q, k[j]) for max(0, p - window + 1) <= j <= p; with a softcap c: s =
//   c*tanh(s/c) out  = sum_j softmax(s)[j] * v[j],  kv head = h / (num_heads / kv_heads)
struct AttentionArgs {
  KvView kv;
  const float* q = nullptr;  // [num_tokens, num_heads, head_dim]
  int64_t q_stride = 0;
  float* out = nullptr;  // [num_tokens, num_heads, head_dim]
  int64_t out_stride = 0;
  const int32_t* block_table = nullptr;
  int64_t first_position = 0;
  int64_t num_tokens = 0;
  int64_t num_heads = 0;
  float scale = 1.0f;
  float softcap = 0.0f;  // 0: none
  int64_t window = 0;    // 0: none
};

struct Ops {
  const char* name;
  const char* description;  // instruction set and arithmetic, for the start-up log

  // out[i, :] = scale * w[ids[i], :] for i in [begin, end); out is [num_ids, cols] with out_stride.
  void (*embed)(const WeightView& w, const int32_t* ids, float scale, float* out,
                int64_t out_stride, int64_t begin, int64_t end);
  // F32 values of whole rows [begin, end) of w into out [end - begin, cols].
  void (*dequantize)(const WeightView& w, float* out, int64_t begin, int64_t end);

  // xq[t, b] = int8 of x[t, 32b .. 32b+31] for tokens [begin, end); cols is a multiple of 32.
  void (*quantize)(const float* x, int64_t x_stride, int64_t cols, ActivationBlock* xq,
                   int64_t xq_stride, int64_t begin, int64_t end);
  // to[t, :] = x[t, :] rounded to BF16 as matmul_fast would for BF16 weights, for tokens [begin,
  // end); to_stride is RoundedStride(cols). Null: matmul_fast reads x itself.
  void (*round)(const float* x, int64_t x_stride, int64_t cols, uint16_t* to, int64_t to_stride,
                int64_t begin, int64_t end);
  // Bytes of the layout that matmul_fast reads for w (0: it reads w itself), 64-byte aligned.
  int64_t (*packed_bytes)(const WeightView& w);
  // Writes rows [begin, end) of w into `packed`; ranges as for matmul.
  void (*pack_rows)(const WeightView& w, void* packed, int64_t begin, int64_t end);
  // y[t, r] = dot(x[t, :], w[r, :]) + bias[r] for r in [begin, end), all tokens.
  // exact: F32 activations x. fast: int8 activations xq against quantised weights; against BF16
  // weights activations x rounded to BF16 (nearest, ties to even), products and sums in F32, on
  // every tier; for F32 and F16 weights it is matmul_exact.
  void (*matmul_exact)(const MatmulArgs& args, int64_t begin, int64_t end);
  void (*matmul_fast)(const MatmulArgs& args, int64_t begin, int64_t end);

  // out[r, i] = x[r, i] / sqrt(mean(x[r, :]^2) + eps) * weight[i] for rows [begin, end). May be in
  // place. weight may be null (all ones); a model that scales by (1 + w) stores 1 + w.
  void (*rms_norm)(const float* x, int64_t x_stride, const float* weight, float eps, int64_t cols,
                   float* out, int64_t out_stride, int64_t begin, int64_t end);
  // cos[t, i] = scale * cos(positions[t] * inverse_frequency[i]), sin alike; i < half_dim.
  void (*rope_angles)(const int32_t* positions, const float* inverse_frequency, int64_t half_dim,
                      float scale, float* cos, float* sin, int64_t begin, int64_t end);
  void (*rope)(const RopeArgs& args, int64_t begin, int64_t end);         // tokens [begin, end)
  void (*kv_store)(const KvStoreArgs& args, int64_t begin, int64_t end);  // tokens [begin, end)
  // Items [begin, end) of num_heads * num_tokens; item = head * num_tokens + token.
  void (*attention)(const AttentionArgs& args, int64_t begin, int64_t end);

  // out[r, i] = act(gate[r, i]) * up[r, i] for rows [begin, end); out may be gate or up.
  // silu(x) = x / (1 + e^-x); gelu is the tanh form.
  void (*silu_mul)(const float* gate, const float* up, int64_t in_stride, int64_t cols, float* out,
                   int64_t out_stride, int64_t begin, int64_t end);
  void (*gelu_tanh_mul)(const float* gate, const float* up, int64_t in_stride, int64_t cols,
                        float* out, int64_t out_stride, int64_t begin, int64_t end);
  // out[i] = a[i] + b[i] for i in [begin, end); out may be a or b.
  void (*add)(const float* a, const float* b, float* out, int64_t begin, int64_t end);
  // x[i] *= factor; x[i] = cap * tanh(x[i] / cap); both in place on [begin, end).
  void (*scale)(float* x, float factor, int64_t begin, int64_t end);
  void (*softcap)(float* x, float cap, int64_t begin, int64_t end);

  // x[0..n) becomes its softmax, in place. Returns log(sum(exp(x))).
  float (*softmax)(float* x, int64_t n);
  // Index of the largest of x[0..n), the lowest on ties; -1 when one is not a number; n > 0.
  int64_t (*argmax)(const float* x, int64_t n);
  // weights[i] = ExpOfNegative((logits[i] - max) / temperature) of kernels/sample_math.h, to the
  // bit on every tier; `max` is the largest. Returns the sum of their FixedWeight.
  uint64_t (*weigh)(const float* logits, int64_t n, float max, float temperature, float* weights);
};

// The definition of every op in plain C++: slow, obvious, and the oracle of the tests.
const Ops& ReferenceOps();

// A table that this binary contains. Twins run a tier's algorithms over software primitives, so
// that tiers which the machine lacks are tested everywhere; they are never chosen for work.
struct OpsTier {
  const Ops* ops;
  bool is_twin;
  bool is_supported;  // by this machine
};
// Slowest first: "reference", "baseline", ..., then the twins ("avx2-twin", ...).
const std::vector<OpsTier>& AllOps();
// The supported table called `name`, or null.
const Ops* FindOps(std::string_view name);

// Those that may be chosen for work, slowest first: supported, and no twins.
std::vector<const Ops*> ChoosableOps();
// The fastest of them.
const Ops& BestOps();
// That of them which is called `name`; null for another name, and `why` says which there are.
const Ops* ChooseOps(std::string_view name, std::string& why);

}  // namespace rempart::kernels
