// SPDX-License-Identifier: Apache-2.0
// Inverse frequencies of rotary embeddings, plain and scaled to longer contexts. The formulas are
// those of transformers (modeling_rope_utils.py), which the models were published with.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/model/model_config.h"

namespace rempart::worker {

// base^(-2i / rotary_dim) / factor, i < rotary_dim / 2.
std::vector<float> InverseFrequencies(double base, int64_t rotary_dim, double factor);

// Llama 3.1: wavelengths longer than original / low_frequency are stretched by `factor`, those
// shorter than original / high_frequency stay, those between are blended.
struct Llama3Scaling {
  double factor = 8.0;
  double low_frequency = 1.0;
  double high_frequency = 4.0;
  double original_context = 8192;
};
void ScaleLlama3(const Llama3Scaling& scaling, std::vector<float>& inverse_frequency);

// YaRN (https://arxiv.org/abs/2309.00071), section 3.2: dimensions that turn fewer than `beta_slow`
// times over the original context are stretched, those of more than `beta_fast` turns stay.
struct YarnScaling {
  double base = 10000.0;
  double factor = 1.0;
  double original_context = 4096;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
};
void ScaleYarn(const YarnScaling& scaling, std::vector<float>& inverse_frequency);
// YaRN's factor of cosine and sine, 0.1 ln(factor) + 1.
float YarnAttentionFactor(double factor);

// LongRoPE's factor of cosine and sine, sqrt(1 + ln(factor) / ln(original)); 1 up to factor 1.
float LongRopeAttentionFactor(double factor, double original_context);

// Of models with two sets of frequencies, takes the set for this served context. One set serves a
// whole process, so that keys in the cache never depend on how long their sequence became.
void ChooseRopes(int64_t context_length, ModelConfig& config);

}  // namespace rempart::worker
