// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/gpu/shapes.h"

#include <cmath>
#include <utility>

#include "benchmarks/gpu/decoder_config.h"
#include "worker/model/rope.h"

namespace rempart::benchmarks {
namespace {

using worker::ModelConfig;

ModelConfig Decoder(const DecoderSizes& sizes, double rope_base) {
  worker::RopeSpec rope;
  rope.inverse_frequency = worker::InverseFrequencies(rope_base, sizes.head_dim, 1.0);
  rope.layout = kernels::RopeLayout::kHalves;
  return DecoderConfig(sizes, std::move(rope));
}

}  // namespace

ModelConfig Llama8B() { return Decoder({4096, 14336, 128256, 32, 8, 128, 32}, 500000); }

std::vector<NamedConfig> SmallDecoders() {
  std::vector<NamedConfig> decoders = {{"llama", Decoder({256, 704, 1024, 4, 2, 64, 3}, 500000)},
                                       {"mistral", Decoder({256, 896, 1024, 4, 4, 64, 3}, 1e6)},
                                       {"qwen", Decoder({224, 608, 1024, 7, 1, 32, 3}, 1e6)}};
  for (worker::LayerSpec& layer : decoders[1].config.layers) layer.window = 40;
  decoders[2].config.qkv_bias = true;
  decoders[2].config.qk_norm = true;
  return decoders;
}

std::vector<NamedConfig> Fp8Decoders() {
  const ModelConfig config = SmallDecoders()[0].config;
  return {{"llama_fp8", config, HeadIs::kOwn, Fp8Is::kInWeights},
          {"llama_fp8_kv", config, HeadIs::kOwn, Fp8Is::kInKv}};
}

NamedConfig SmolLm2() {
  return {"smollm2_135m", Decoder({576, 1536, 49152, 9, 3, 64, 30}, 100000), HeadIs::kTied};
}

NamedConfig Gemma3() {
  constexpr size_t kPattern = 6;  // every sixth layer sees all
  ModelConfig config = Decoder({640, 2048, 262144, 4, 1, 256, 18}, 1e6);
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
