// SPDX-License-Identifier: Apache-2.0
// The configuration of a plain decoder of any size: what models made from a seed begin with.
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>

#include "worker/model/model_config.h"

namespace rempart::benchmarks {

struct DecoderSizes {
  int64_t hidden = 0, ffn = 0, vocabulary = 0, heads = 0, kv_heads = 0, head_dim = 0;
  size_t layers = 0;
  int64_t context_length = 8192;
};

inline worker::ModelConfig DecoderConfig(const DecoderSizes& sizes, worker::RopeSpec rope) {
  worker::ModelConfig config;
  config.architecture = "random";
  config.hidden = sizes.hidden;
  config.ffn = sizes.ffn;
  config.vocabulary = sizes.vocabulary;
  config.heads = sizes.heads;
  config.kv_heads = sizes.kv_heads;
  config.head_dim = sizes.head_dim;
  config.context_length = sizes.context_length;
  config.attention_scale = 1.0f / std::sqrt(static_cast<float>(sizes.head_dim));
  config.ropes = {std::move(rope)};
  config.layers.resize(sizes.layers);
  return config;
}

}  // namespace rempart::benchmarks
