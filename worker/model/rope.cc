// SPDX-License-Identifier: Apache-2.0
#include "worker/model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace rempart::worker {

std::vector<float> InverseFrequencies(double base, int64_t rotary_dim, double factor) {
  std::vector<float> inverse(rotary_dim / 2);
  for (size_t i = 0; i < inverse.size(); ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(rotary_dim);
    inverse[i] = static_cast<float>(std::pow(base, exponent) / factor);
  }
  return inverse;
}

void ScaleLlama3(const Llama3Scaling& scaling, std::vector<float>& inverse_frequency) {
  const double longest = scaling.original_context / scaling.low_frequency;
  const double shortest = scaling.original_context / scaling.high_frequency;
  for (float& inverse : inverse_frequency) {
    const double wavelength = 2 * std::numbers::pi / inverse;
    if (wavelength < shortest) continue;
    const double stretched = inverse / scaling.factor;
    if (wavelength > longest) {
      inverse = static_cast<float>(stretched);
      continue;
    }
    const double keep = (scaling.original_context / wavelength - scaling.low_frequency) /
                        (scaling.high_frequency - scaling.low_frequency);
    inverse = static_cast<float>((1 - keep) * stretched + keep * inverse);
  }
}

void ScaleYarn(const YarnScaling& scaling, std::vector<float>& inverse_frequency) {
  const double dim = 2.0 * static_cast<double>(inverse_frequency.size());
  // The dimension that turns `turns` times over the original context.
  const auto dimension = [&](double turns) {
    return dim * std::log(scaling.original_context / (turns * 2 * std::numbers::pi)) /
           (2 * std::log(scaling.base));
  };
  const double low = std::max(std::floor(dimension(scaling.beta_fast)), 0.0);
  double high = std::min(std::ceil(dimension(scaling.beta_slow)), dim - 1);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < inverse_frequency.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    const double inverse = inverse_frequency[i];
    inverse_frequency[i] =
        static_cast<float>(inverse / scaling.factor * ramp + inverse * (1 - ramp));
  }
}

float YarnAttentionFactor(double factor) {
  return factor <= 1 ? 1.0f : static_cast<float>(0.1 * std::log(factor) + 1.0);
}

float LongRopeAttentionFactor(double factor, double original_context) {
  if (factor <= 1) return 1.0f;
  return static_cast<float>(std::sqrt(1 + std::log(factor) / std::log(original_context)));
}

void ChooseRopes(int64_t context_length, ModelConfig& config) {
  for (RopeSpec& rope : config.ropes) {
    if (rope.long_inverse_frequency.empty() || context_length <= rope.long_beyond) continue;
    rope.inverse_frequency = rope.long_inverse_frequency;
  }
}

}  // namespace rempart::worker
