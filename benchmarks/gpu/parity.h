// SPDX-License-Identifier: Apache-2.0
// Parts of benchmarks/gpu/run that compare tokens: what a device computes against the CPU with F32
// activations, of seeded decoders and of model files. Greedy tokens, each step on the tokens of the
// side that is right by definition, so that one tie does not part the two for good. Where a device
// holds FP8, the CPU has the weights that FP8 holds, and a cache in F32.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "benchmarks/gpu/result.h"
#include "benchmarks/gpu/shapes.h"
#include "worker/device/device.h"
#include "worker/model/model_config.h"
#include "worker/model/weights.h"

namespace rempart::benchmarks {

// Tokens of the prompt, and greedy ones after it.
inline constexpr int kParityPrompt = 48;
inline constexpr int kParityTokens = 16;

// Two computations of the same tokens' logits, step by step. A token may differ where the expected
// logits of both choices lie as close as BF16 rounds; logits may differ, as root mean square over
// their own, by what BF16 makes of activations over so many layers. Both by more where FP8 rounds:
// a cache's keys and values, or the activations that a library multiplies FP8 weights with.
class Agreement {
 public:
  Agreement(std::string name, size_t layers, Fp8Is fp8 = Fp8Is::kNowhere);
  void Take(absl::Span<const float> actual, absl::Span<const float> expected);
  // Of a step whose token alone is known.
  void TakeToken(int32_t actual, absl::Span<const float> expected);
  // NAME_same_tokens and NAME_worst_logits_error, and all that was wrong.
  void Report(PartResult& result) const;

 private:
  void JudgeToken(size_t actual, absl::Span<const float> expected);

  const std::string name_;
  const double coarser_;  // than BF16
  const double most_error_;
  double worst_error_ = 0;
  int steps_ = 0;
  int same_ = 0;
  std::vector<std::string> wrong_;
};
size_t Best(absl::Span<const float> logits);

absl::StatusOr<PartResult> CheckParity(worker::Device& device,
                                       const std::vector<NamedConfig>& decoders);

// Of a GGUF file. NotRun (course.h) when it cannot be read.
absl::StatusOr<PartResult> CheckFileParity(worker::Device& device, const std::string& path);

}  // namespace rempart::benchmarks
