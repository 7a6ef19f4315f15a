// SPDX-License-Identifier: Apache-2.0
// Models of any shape whose BF16 weights a seed makes, as fast as memory takes them: what
// benchmarks compute with instead of a download.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "worker/model/model_config.h"
#include "worker/model/weights.h"

namespace rempart::benchmarks {

// Whether every layer has weights of its own, or all have those of the first. A device holds a copy
// for each layer either way, and reads as many bytes.
enum class LayerWeightsAre { kOwn, kShared };

class SeededModel {
 public:
  SeededModel(worker::ModelConfig config, uint64_t seed, LayerWeightsAre layers);
  SeededModel(const SeededModel&) = delete;
  SeededModel& operator=(const SeededModel&) = delete;

  const worker::ModelConfig& config() const { return config_; }
  const worker::Weights& weights() const { return weights_; }

 private:
  uint64_t Next();
  float NextFloat();  // in [-1, 1)
  std::vector<float> Floats(int64_t count, float middle, float reach);
  // Deviation about 1 / sqrt(cols), so that what it multiplies keeps its size.
  void Fill(worker::Matrix& matrix, int64_t rows, int64_t cols);
  worker::LayerWeights MakeLayer();

  const worker::ModelConfig config_;
  uint64_t state_;
  std::deque<std::vector<uint64_t>> storage_;
  worker::Weights weights_;
};

// The exact shape of Llama-3.1-8B.
worker::ModelConfig Llama8B();

struct NamedConfig {
  const char* name;
  worker::ModelConfig config;
};
// Small decoders of the three kinds that most models are: Llama, Mistral (a sliding window) and
// Qwen (biases and norms of heads).
std::vector<NamedConfig> SmallDecoders();

}  // namespace rempart::benchmarks
