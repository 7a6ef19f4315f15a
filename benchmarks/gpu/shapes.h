// SPDX-License-Identifier: Apache-2.0
// The shapes of the models that benchmarks/gpu/run makes from a seed.
#pragma once

#include <vector>

#include "worker/model/model_config.h"

namespace rempart::benchmarks {

enum class HeadIs { kOwn, kTied };  // tied: the embedding is the head, too

// What of a decoder a device holds in FP8.
enum class Fp8Is { kNowhere, kInWeights, kInKv };

struct NamedConfig {
  const char* name;
  worker::ModelConfig config;
  HeadIs head = HeadIs::kOwn;
  Fp8Is fp8 = Fp8Is::kNowhere;
};

// The exact shape of Llama-3.1-8B.
worker::ModelConfig Llama8B();

// Small decoders of the three kinds that most models are: Llama, Mistral (a sliding window) and
// Qwen (biases and norms of heads).
std::vector<NamedConfig> SmallDecoders();

// The first of these with FP8 weights, and with an FP8 KV cache.
std::vector<NamedConfig> Fp8Decoders();

// The exact shapes of SmolLM2-135M and Gemma 3 270M, as their GGUF files have them.
NamedConfig SmolLm2();
NamedConfig Gemma3();

}  // namespace rempart::benchmarks
