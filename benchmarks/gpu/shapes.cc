// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/gpu/shapes.h"

#include <cmath>

#include "worker/model/rope.h"

namespace rempart::benchmarks {
namespace {

using worker::ModelConfig;

ModelConfig Decoder(int64_t hidden, int64_t ffn, int64_t vocabulary, int64_t heads,
                    int64_t kv_heads, int64_t head_dim, size_t layers, double rope_base) {
  ModelConfig config;
  config.architecture = "random";
  config.hidden = hidden;
  config.ffn = ffn;
  config.vocabulary = vocabulary;
  config.heads = heads;
  config.kv_heads = kv_heads;
  config.head_dim = head_dim;
  config.context_length = 8192;
  config.attention_scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  worker::RopeSpec& rope = config.ropes.emplace_back();
  rope.inverse_frequency = worker::InverseFrequencies(rope_base, head_dim, 1.0);
  rope.layout = kernels::RopeLayout::kHalves;
  config.layers.resize(layers);
  return config;
}

}  // namespace

ModelConfig Llama8B() { return Decoder(4096, 14336, 128256, 32, 8, 128, 32, 500000); }

std::vector<NamedConfig> SmallDecoders() {
  std::vector<NamedConfig> decoders = {{"llama", Decoder(256, 704, 1024, 4, 2, 64, 3, 500000)},
                                       {"mistral", Decoder(256, 896, 1024, 4, 4, 64, 3, 1e6)},
                                       {"qwen", Decoder(224, 608, 1024, 7, 1, 32, 3, 1e6)}};
  for (worker::LayerSpec& layer : decoders[1].config.layers) layer.window = 40;
  decoders[2].config.qkv_bias = true;
  decoders[2].config.qk_norm = true;
  return decoders;
}

NamedConfig SmolLm2() {
  return {"smollm2_135m", Decoder(576, 1536, 49152, 9, 3, 64, 30, 100000), HeadIs::kTied};
}

NamedConfig Gemma3() {
  constexpr size_t kPattern = 6;  // every sixth layer sees all
  ModelConfig config = Decoder(640, 2048, 262144, 4, 1, 256, 18, 1e6);
  config.norm_epsilon = 1e-6f;
  config.embedding_scale = std::sqrt(640.0f);
  config.activation = worker::Activation::kGeluTanh;
  config.qk_norm = true;
  config.post_norms = true;
  config.ropes.push_back(config.ropes[0]);
  config.ropes[1].inverse_frequency = worker::InverseFrequencies(10000, config.head_dim, 1.0);
  for (size_t i = 0; i < config.layers.size(); ++i) {
    if (i % kPattern == kPattern - 1) continue;
    config.layers[i].window = 512;
    config.layers[i].rope = 1;
  }
  return {"gemma3_270m", config, HeadIs::kTied};
}

}  // namespace rempart::benchmarks
