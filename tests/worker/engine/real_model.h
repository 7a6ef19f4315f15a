// SPDX-License-Identifier: Apache-2.0
// A real model file behind the engine's interface, for tests.
#pragma once

#include <string>

#include "tests/worker/model/whole_model.h"
#include "worker/engine/model_runner.h"

namespace rempart::worker {

constexpr char kStoriesModel[] = "tests/goldens/stories/stories260K.f32.gguf";
constexpr int32_t kStoriesBlocks = 64;  // of WholeModel
constexpr int32_t kStoriesBlockSize = 16;

class RealModel : public ModelRunner {
 public:
  RealModel() : model_(kStoriesModel, kernels::BestOps(), /*exact=*/false) {}
  bool ok() const { return model_.ok(); }
  int32_t vocabulary_size() const override { return static_cast<int32_t>(model_.vocabulary()); }
  absl::Status Forward(const StepBatch& batch, absl::Span<float> logits,
                       absl::Span<DrawnToken>) override {
    return model_.transformer().Forward(batch, logits);
  }

 private:
  WholeModel model_;
};

// Token 2 ends, as in Llama's vocabulary; the bytes are the id's decimal digits.
class PlainVocabulary : public Vocabulary {
 public:
  std::string TokenBytes(int32_t id) const override { return std::to_string(id); }
  bool EndsGeneration(int32_t id) const override { return id == 2; }
};

}  // namespace rempart::worker
