// SPDX-License-Identifier: Apache-2.0
// What a model's files may say about how a request is sampled that does not say so itself: in
// generation_config.json of a folder, and in the keys of a GGUF file that llama.cpp's converter
// makes of it. A value outside its bounds is an error, as it is in a request.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>

#include "worker/model/sampling.h"

namespace rempart::worker {

struct SamplingField {
  const char* json_key;
  const char* gguf_key;
  double low;
  double high;
  void (*set)(SamplingParams& sampling, double value);

  // False for what is not a number, too.
  bool Allows(double value) const { return value >= low && value <= high; }
};

inline constexpr std::array<SamplingField, 5> kSamplingFields = {{
    {"temperature", "general.sampling.temp", 0, 2,
     [](SamplingParams& sampling, double value) {
       sampling.temperature = static_cast<float>(value);
     }},
    {"top_p", "general.sampling.top_p", 1e-6, 1,
     [](SamplingParams& sampling, double value) { sampling.top_p = static_cast<float>(value); }},
    {"top_k", "general.sampling.top_k", -1, std::numeric_limits<int32_t>::max(),
     [](SamplingParams& sampling, double value) {
       sampling.top_k = std::max(0, static_cast<int32_t>(value));
     }},
    {"min_p", "general.sampling.min_p", 0, 1,
     [](SamplingParams& sampling, double value) { sampling.min_p = static_cast<float>(value); }},
    {"repetition_penalty", "general.sampling.penalty_repeat", 0.01, 100,
     [](SamplingParams& sampling, double value) {
       sampling.repetition_penalty = static_cast<float>(value);
     }},
}};

}  // namespace rempart::worker
