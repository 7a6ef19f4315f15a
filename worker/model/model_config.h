// SPDX-License-Identifier: Apache-2.0
// A decoder-only transformer as data: what a family's reader finds in a model file, and all that
// the Transformer knows about the family.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/ops.h"

namespace rempart::worker {

enum class Activation { kSilu, kGeluTanh };

// Angles of one kind of rotary embedding: inverse_frequency[i] for i < rotary_dim / 2.
struct RopeSpec {
  std::vector<float> inverse_frequency;
  kernels::RopeLayout layout = kernels::RopeLayout::kInterleaved;
  // Of models with two sets (LongRoPE): those for a served context longer than `long_beyond`
  // tokens.
  std::vector<float> long_inverse_frequency = {};
  int64_t long_beyond = 0;
  float scale = 1.0f;  // of cosine and sine
};

struct LayerSpec {
  int64_t window = 0;  // tokens that attention looks back; 0: all
  int32_t rope = 0;    // index into ModelConfig::ropes
};

struct ModelConfig {
  std::string architecture;
  int64_t hidden = 0;
  int64_t ffn = 0;
  int64_t vocabulary = 0;  // rows of the embedding
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t context_length = 0;  // that the model was trained for
  float norm_epsilon = 1e-5f;
  float norm_offset = 0.0f;  // added to the weights of every norm
  float embedding_scale = 1.0f;
  float attention_scale = 1.0f;
  float attention_softcap = 0.0f;  // 0: none
  float logit_softcap = 0.0f;
  Activation activation = Activation::kSilu;
  bool qk_norm = false;      // RMS norm of each query and key head
  bool post_norms = false;   // RMS norm of what attention and FFN add
  bool qkv_bias = false;     // biases of the products with query, key and value;
  bool output_bias = false;  // with the attention's output;
  bool ffn_bias = false;     // with gate, up and down
  std::vector<RopeSpec> ropes;
  std::vector<LayerSpec> layers;
};

}  // namespace rempart::worker
