// SPDX-License-Identifier: Apache-2.0
// Models of any shape whose BF16 weights a seed makes, as fast as memory takes them: what
// benchmarks compute with instead of a download.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "benchmarks/gpu/shapes.h"
#include "worker/model/model_config.h"
#include "worker/model/tensor_view.h"
#include "worker/model/weights.h"

namespace rempart::benchmarks {

// Whether every layer has weights of its own, or all have those of the first. A device holds a copy
// for each layer either way, and reads as many bytes.
enum class LayerWeightsAre { kOwn, kShared };

// Whether a matrix has all digits of BF16, or so few that FP8 with a scale for each row holds it as
// it is.
enum class DigitsAre { kOfBf16, kOfFp8 };

class SeededModel {
 public:
  SeededModel(worker::ModelConfig config, uint64_t seed, LayerWeightsAre layers,
              HeadIs head = HeadIs::kOwn, DigitsAre digits = DigitsAre::kOfBf16);
  SeededModel(const SeededModel&) = delete;
  SeededModel& operator=(const SeededModel&) = delete;

  const worker::ModelConfig& config() const { return config_; }
  // As those of a file, by their names in GGUF files.
  const worker::TensorMap& tensors() const { return tensors_; }
  // Views into this. Those of a rank of several are cut as a GPU's; InvalidArgument when the shape
  // cannot be cut for so many.
  absl::StatusOr<worker::Weights> Weights(const worker::RankPosition& of = {}) const;

 private:
  uint64_t Next();
  float NextFloat();  // in [-1, 1)
  void Vector(const std::string& name, int64_t count, float middle, float reach);
  // Deviation about 1 / sqrt(cols), so that what it multiplies keeps its size.
  void Matrix(const std::string& name, int64_t rows, int64_t cols);
  void Layer(const std::string& prefix);

  const worker::ModelConfig config_;
  const DigitsAre digits_;
  uint64_t state_;
  std::deque<std::vector<uint64_t>> storage_;
  worker::TensorMap tensors_;
};

}  // namespace rempart::benchmarks
