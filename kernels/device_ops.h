// SPDX-License-Identifier: Apache-2.0
// The table of kernels of a device with memory of its own (a GPU), beside the CPU's in
// kernels/ops.h. Shapes, types and aliasing are documented here once.
//
// Invariants of every table:
//  1. All pointers are device memory unless a field says host. An op only queues work on `stream`
//  and
//     returns; it allocates nothing and waits for nothing, so a sequence of ops can be captured
//     into a graph. Whoever owns the stream asks the device for errors.
//  2. Activations are BF16, the residual stream is F32, sums are F32. Offsets are 64-bit.
//  3. Batch invariance: the result for one token depends on that token and on the sizes that
//     construction fixed, not on how many others are computed in the same call. matmul changes its
//     algorithm at kMatvecTokens tokens, and there alone.
//  4. Inputs and outputs do not overlap unless an op says that it works in place.
//  5. Strides are in elements; data is row-major; [a, b, c] names the dimensions outermost first.
//     Rows begin at multiples of 16 bytes.
#pragma once

#include <cstdint>

#include "kernels/ops.h"

namespace rempart::kernels {

// The device's stream; what it is, the device knows.
using DeviceStream = void*;

// How a weight matrix is stored on the device.
enum class DeviceFormat : uint8_t {
  kBF16,       // F32 and F16 of a file become BF16
  kFP8Row,     // E4M3, one F32 scale a row
  kFP8Block,   // E4M3, one F32 scale for each 128 x 128
  kINT8Row,    // int8, one F32 scale a row
  kINT4Group,  // 4-bit codes with an F16 scale and a zero point per group (AWQ, GPTQ)
  kGguf,       // a quantised DType of kernels/ops.h, bit for bit as in a GGUF file
};

// Of rows and columns that a scale of kFP8Block is for, and of columns that one of op quantize_rows
// may be for.
inline constexpr int64_t kScaleBlock = 128;
// Scales in a row of kFP8Block's: a multiple of four, as cuBLASLt wants them. What is after the
// last that counts is zero.
constexpr int64_t BlockScaleStride(int64_t cols) {
  return (cols + 4 * kScaleBlock - 1) / (4 * kScaleBlock) * 4;
}

// [rows, cols]. w[r, c] is what `format` makes of the bytes:
//   kFP8Row, kINT8Row: code * scales[r]
//   kFP8Block: code * scales[r / 128, c / 128], scales [ceil(rows / 128), BlockScaleStride(cols)]
//   kINT4Group: (code - zero) * scale of (r, c / group); codes [rows, cols / 2], low nibble first,
//     group_scales and group_zeros [rows, cols / group]. cols is a multiple of group, group of 8.
struct DeviceMatrix {
  const void* data = nullptr;
  DeviceFormat format = DeviceFormat::kBF16;
  DType gguf = DType::kQ8_0;  // of kGguf
  int64_t rows = 0;
  int64_t cols = 0;  // a multiple of 8
  const float* scales = nullptr;
  const uint16_t* group_scales = nullptr;  // F16 bits
  const uint8_t* group_zeros = nullptr;
  int64_t group = 0;
  bool int8_activations = false;  // of kINT8Row: activations may be quantised by rows
};
// Bytes of `data` for this format, rows and cols.
int64_t DeviceMatrixBytes(const DeviceMatrix& matrix);

// out[i, :] = scale * table[ids[i] - first_id, :], F32. Ids outside the table give zeros: ranks
// that hold a part of it each add up what they give.
struct DeviceEmbedArgs {
  DeviceMatrix table;
  int64_t first_id = 0;          // of the table's first row
  const int32_t* ids = nullptr;  // [num_tokens]
  float scale = 1.0f;
  float* out = nullptr;  // [num_tokens, cols]
  int64_t num_tokens = 0;
};

// For token t = rows ? rows[i] : i, i < num_rows:
//   residual[t] += branch[t], or its RMS norm times branch_weight where that is not null;
//   out[i] = RmsNorm(residual[t]) * weight.
// branch may be null: then nothing is added. A row index occurs once.
struct AddNormArgs {
  float* residual = nullptr;             // [num_tokens, cols], in place
  const uint16_t* branch = nullptr;      // BF16 [num_tokens, cols]
  const float* branch_weight = nullptr;  // [cols]
  const float* weight = nullptr;         // [cols]
  float eps = 1e-5f;
  uint16_t* out = nullptr;  // BF16 [num_rows, cols]
  const int32_t* rows = nullptr;
  int64_t num_rows = 0;
  int64_t cols = 0;  // a multiple of 8
};

// The paged KV cache of one layer on the device. Block `id` begins at data + id *
// block_stride_bytes and holds K [kv_heads, 16, head_dim], then V [kv_heads, 16, head_dim].
struct DeviceKv {
  void* data = nullptr;
  int64_t block_stride_bytes = 0;  // a multiple of 16
  bool is_fp8 = false;             // E4M3 with the scales below; else BF16
  float k_scale = 1.0f;            // stored value * scale is the value
  float v_scale = 1.0f;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;  // a multiple of 8, at most 256; of 16 for FP8
};
int64_t DeviceKvBlockBytes(bool is_fp8, int64_t kv_heads, int64_t head_dim);

// Where the tokens of a step belong. Slices follow each other in the token dimension.
struct DeviceBatch {
  int64_t num_tokens = 0;
  int64_t num_slices = 0;
  const int32_t* positions = nullptr;       // [num_tokens]
  const int32_t* slice_of_token = nullptr;  // [num_tokens]
  const int32_t* query_starts = nullptr;    // [num_slices + 1], row of a slice's first token
  const int32_t* contexts = nullptr;        // [num_slices], tokens cached after this step
  const int32_t* block_tables = nullptr;    // [num_slices, table_stride]
  int64_t table_stride = 0;
};

// Bias and norm (where they are not null), rotation and KV append of one layer. q is written back
// in place, rotated; k and v go to the cache. A negative position is a padding row: nothing
// happens.
struct RopeStoreArgs {
  uint16_t* qkv = nullptr;            // BF16 [num_tokens, (num_heads + 2 * kv_heads) * head_dim]
  const float* bias = nullptr;        // [(num_heads + 2 * kv_heads) * head_dim]
  const float* query_norm = nullptr;  // [head_dim]
  const float* key_norm = nullptr;    // [head_dim]
  const float* inverse_frequency = nullptr;  // [rotary_dim / 2]
  int64_t rotary_dim = 0;
  RopeLayout layout = RopeLayout::kInterleaved;
  float angle_scale = 1.0f;  // of cosine and sine
  float eps = 1e-5f;
  int64_t num_heads = 0;
  DeviceKv kv;
  DeviceBatch batch;
};

// Queries of one tile of attention_prefill.
inline constexpr int64_t kPrefillTile = 64;

// As AttentionArgs of kernels/ops.h. attention_decode takes slices of one token each and cuts each
// context into splits of split_tokens; attention_prefill takes any slices, cut into tiles.
struct DeviceAttentionArgs {
  DeviceKv kv;
  DeviceBatch batch;
  const uint16_t* q = nullptr;  // BF16 [num_tokens, q_stride], heads first
  int64_t q_stride = 0;
  uint16_t* out = nullptr;  // BF16 [num_tokens, out_stride], heads first; the rest stays as it is
  int64_t out_stride = 0;
  int64_t num_heads = 0;
  float scale = 1.0f;
  float softcap = 0.0f;
  int64_t window = 0;
  // attention_prefill: tile i is the queries [64 * tile_index[i], ...) of slice tile_slice[i].
  const int32_t* tile_slices = nullptr;   // [num_tiles]
  const int32_t* tile_indices = nullptr;  // [num_tiles]
  int64_t num_tiles = 0;
  // attention_decode:
  int64_t split_tokens = 0;  // a multiple of 16
  int64_t max_splits = 0;    // covers the longest context
  float* partial = nullptr;  // DecodePartialFloats(...) floats of workspace
};
int64_t DecodePartialFloats(int64_t num_slices, int64_t num_heads, int64_t head_dim,
                            int64_t max_splits);

// out[t, i] = act(gate_up[t, i]) * gate_up[t, cols + i].
struct ActivateArgs {
  const uint16_t* gate_up = nullptr;  // BF16 [num_tokens, 2 * cols]
  uint16_t* out = nullptr;            // BF16 [num_tokens, cols]
  bool is_gelu = false;               // tanh form; else SiLU
  int64_t num_tokens = 0;
  int64_t cols = 0;  // a multiple of 8
};

// matvec is used up to this many tokens, tiles of the tensor cores above.
inline constexpr int64_t kMatvecTokens = 8;

// Rows of y come by so many where a library computes products of quantised activations.
inline constexpr int64_t kProductRows = 4;

// y[t, r] = dot(x[t, :], w[r, :]).
struct DeviceMatmulArgs {
  DeviceMatrix w;
  const uint16_t* x = nullptr;  // BF16 [num_tokens, x_stride]
  int64_t x_stride = 0;         // a multiple of 8
  void* y = nullptr;            // [num_tokens, y_stride], BF16 or F32
  int64_t y_stride = 0;
  bool y_is_f32 = false;
  int64_t num_tokens = 0;
  // Rows that y has room for: those from num_tokens on may be overwritten, as a device that
  // computes more tokens than there are does (Device::Matmul; the ops do not). A multiple of
  // kProductRows where it is to do that; 0: no more than num_tokens.
  int64_t y_rows = 0;
};

// What computes a product on a device: an op for few tokens or for many, or a library.
enum class ProductWay : uint8_t { kMatvec, kTiles, kLibrary };

// codes[t, :] = x[t, :] / scales[t], scales[t] = max(1e-30, |x[t, :]|) / largest code. Tokens may
// be added that are zeros. With `group`, of FP8 alone, each so many columns have a scale of their
// own:
//   codes[t, c] = x[t, c] / scales[c / group, t], scales [ceil(cols / group), padded_tokens].
struct QuantizeRowsArgs {
  const uint16_t* x = nullptr;  // BF16 [num_tokens, cols]
  void* codes = nullptr;        // [padded_tokens, cols]
  float* scales = nullptr;      // [padded_tokens], or as above
  bool is_int8 = false;         // 127 is the largest code; else FP8 E4M3, 448
  int64_t num_tokens = 0;
  int64_t cols = 0;           // a multiple of 16
  int64_t group = 0;          // 0: all of a row; or kScaleBlock
  int64_t padded_tokens = 0;  // num_tokens or more; 0: num_tokens
};

// What a product of int8 codes stands for: y[t, r] = sums[t, r] * (x_scales[t] * w_scales[r]).
struct ScaleSumsArgs {
  const int32_t* sums = nullptr;    // [num_tokens, rows]
  const float* x_scales = nullptr;  // [num_tokens]
  const float* w_scales = nullptr;  // [rows]
  void* y = nullptr;                // [num_tokens, y_stride], BF16 or F32
  int64_t y_stride = 0;
  bool y_is_f32 = false;
  int64_t num_tokens = 0;
  int64_t rows = 0;
};

// One row of sampling parameters, as worker/engine/sampler.h defines them.
struct DeviceSampling {
  float temperature = 0.0f;  // 0: the largest logit
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float frequency_penalty = 0.0f;
  float presence_penalty = 0.0f;
  int32_t top_k = 0;       // 0: all
  int32_t list_begin = 0;  // this row's part of the lists of SampleArgs
  int32_t bias_end = 0;    // [list_begin, bias_end): biases
  int32_t list_end = 0;    // [bias_end, list_end): tokens that occurred
  int32_t mask_row = -1;   // row of `masks`, or -1
  // Of SampleArgs::ids: a token that was generated once more often than the lists say; -1: none.
  int32_t unlisted_row = -1;
  bool keeps_logits = false;   // nothing is drawn: the logits stay, but for the softcap
  bool wants_logprob = false;  // of the token drawn
  uint64_t seed = 0;
  uint64_t position = 0;  // of the generated token, from 0
};

// Samples one token a row: logit bias, penalties, mask, temperature, top-k, top-p, min-p, draw.
// All that decides is in kernels/sample_math.h: weights are summed in fixed point and walked in the
// order of their ids, so that equal logits give equal tokens and log-probabilities here and in
// worker/engine/sampler.h, whatever the other rows are.
struct SampleArgs {
  // Row i's logit of token id is at parts[(id / part_size) * part_stride + i * part_size +
  // id % part_size]: vocabulary-parallel ranks gather their parts one after the other. Changed.
  float* parts = nullptr;
  int64_t part_size = 0;
  int64_t part_stride = 0;
  int64_t vocabulary = 0;
  float softcap = 0.0f;
  const DeviceSampling* rows = nullptr;  // [num_rows]
  const int32_t* list_ids = nullptr;     // none twice among a row's biases, nor among the others
  const float* list_values = nullptr;    // bias; or how often the token was generated
  float* list_originals = nullptr;       // workspace as long as the lists
  const int32_t* ids = nullptr;          // of unlisted_row
  const uint32_t* masks = nullptr;       // [*, ceil(vocabulary / 32)], a set bit allows the token
  // [num_rows]; -1 where no logit is a number, or none is drawn; -2 where the mask allows none that
  // is finite.
  int32_t* tokens = nullptr;
  float* logprobs = nullptr;  // [num_rows] of the unmodified logits, where the row wants it
  int64_t num_rows = 0;
};

// Next inputs of a decode step, from this one's tokens: ids[i] = tokens[i], positions[i] += 1,
// contexts[i] += 1, samplings[i].position += 1, where positions[i] >= 0. With `sources`, of a step
// whose other inputs are there: ids[i] = tokens[sources[i]] alone, where sources[i] >= 0.
struct AdvanceArgs {
  const int32_t* tokens = nullptr;
  int32_t* ids = nullptr;
  int32_t* positions = nullptr;
  int32_t* contexts = nullptr;
  DeviceSampling* samplings = nullptr;
  int64_t num_rows = 0;
  const int32_t* sources = nullptr;  // [num_rows], or null
};

// Copies whole KV blocks: to + pairs[i].to * bytes = from + pairs[i].from * bytes.
struct CopyBlocksArgs {
  const uint8_t* from = nullptr;
  uint8_t* to = nullptr;
  const int32_t* pairs = nullptr;  // [num_pairs, 2]: from, to
  int64_t block_bytes = 0;         // a multiple of 16
  int64_t num_pairs = 0;
};

// A 64-bit checksum of device memory, for what was copied there (worker/device/device.h,
// CheckDevice): the sum over 8-byte words i of Mix(word + Mix(i)), the last word filled with zeros.
// HashBytes of kernels/cuda/hash.h on the host.
struct HashArgs {
  const void* data = nullptr;  // aligned to 8
  int64_t bytes = 0;
  uint64_t* out = nullptr;  // one word, set
};

// Ranks whose devices reach each other's memory, and what a sum in one shot needs of them. Each
// rank gives a slab of PeerSlabBytes(buffer_bytes) of its device's memory, whose first
// kPeerFlagBytes are zero before any rank begins. Every rank runs the same calls in the same order
// with the same sizes, each at most buffer_bytes long, on one stream; a slab knows how many there
// were, so that they may be part of a graph. Sums are F32, in the order of the ranks: all get the
// same bits.
inline constexpr int kMaxPeers = 8;
inline constexpr int64_t kAllReduceBlocks = 64;
inline constexpr int64_t kPeerFlagBytes = kAllReduceBlocks * (kMaxPeers * 8 + 4);
// Of PeerGroup::stop.
inline constexpr uint32_t kPeersStopped = 1;
inline constexpr uint32_t kPeerIsLate = 2;  // + the rank
struct PeerGroup {
  void* slabs[kMaxPeers] = {};  // by rank, as this one reaches them
  int32_t rank = 0;
  int32_t ranks = 0;
  int64_t buffer_bytes = 0;  // a multiple of 16
  uint32_t epoch = 0;  // not 0; what a rank of another epoch writes into a slab counts for nothing
  uint64_t timeout_ns =
      0;  // a rank is waited for so long; then *stop becomes kPeerIsLate + the rank
  // Pinned host memory. While it is not 0 nobody is waited for, and results are void.
  uint32_t* stop = nullptr;
};
int64_t PeerSlabBytes(int64_t buffer_bytes);

// values[i] becomes its sum over all ranks.
struct AllReduceArgs {
  PeerGroup peers;
  void* values = nullptr;     // [count], in place
  DType type = DType::kBF16;  // or kF16 or kF32
  int64_t count = 0;
};

// add_norm of the sum over all ranks of norm.branch, rounded to BF16 as that of all_reduce is;
// norm.branch stays as it is. `rows` are the same on all ranks.
struct AllReduceNormArgs {
  PeerGroup peers;
  AddNormArgs norm;
};

// X(name, arguments) for every op of the table: the conformance tests walk this list.
#define REMPART_DEVICE_OPS(X)               \
  X(embed, DeviceEmbedArgs)                 \
  X(add_norm, AddNormArgs)                  \
  X(rope_store, RopeStoreArgs)              \
  X(attention_prefill, DeviceAttentionArgs) \
  X(attention_decode, DeviceAttentionArgs)  \
  X(activate, ActivateArgs)                 \
  X(matvec, DeviceMatmulArgs)               \
  X(matmul, DeviceMatmulArgs)               \
  X(quantize_rows, QuantizeRowsArgs)        \
  X(scale_sums, ScaleSumsArgs)              \
  X(sample, SampleArgs)                     \
  X(advance, AdvanceArgs)                   \
  X(copy_blocks, CopyBlocksArgs)            \
  X(hash, HashArgs)                         \
  X(all_reduce, AllReduceArgs)              \
  X(all_reduce_norm, AllReduceNormArgs)

struct DeviceOps {
  const char* name;
#define REMPART_DECLARE_OP(op, Args) void (*op)(const Args& args, DeviceStream stream);
  REMPART_DEVICE_OPS(REMPART_DECLARE_OP)
#undef REMPART_DECLARE_OP
};

}  // namespace rempart::kernels
