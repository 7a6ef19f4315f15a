// SPDX-License-Identifier: Apache-2.0
// A small decoder as a CPU serves it by default, behind the engine's interface, for tests: packed
// quantised weights, int8 activations, a KV cache in F16.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <utility>

#include "tests/worker/model/mixed_model.h"
#include "worker/engine/model_runner.h"
#include "worker/model/transformer.h"

namespace rempart::worker {

class ServedModel : public ModelRunner {
 public:
  static constexpr int32_t kBlocks = 24;
  static constexpr int32_t kBlockSize = kernels::kKvBlockTokens;

  ServedModel(const MixedModelSpec& spec, const kernels::Ops& ops) : model_(spec) {
    const absl::Status packed = model_.Pack(ops, pool_);
    EXPECT_TRUE(packed.ok()) << packed;
    TransformerOptions options;
    options.kv_blocks = kBlocks;
    auto made = Transformer::Create(spec.config, model_.weights(), ops, pool_, options);
    EXPECT_TRUE(made.ok()) << made.status();
    if (made.ok()) transformer_ = *std::move(made);
  }
  bool ok() const { return transformer_ != nullptr; }
  int32_t vocabulary_size() const override {
    return static_cast<int32_t>(model_.config().vocabulary);
  }
  absl::Status Forward(const StepBatch& batch, absl::Span<float> logits,
                       absl::Span<DrawnToken>) override {
    return transformer_->Forward(batch, logits);
  }

 private:
  ThreadPool pool_{{.threads = 2}};
  MixedModel model_;
  std::unique_ptr<Transformer> transformer_;
};

}  // namespace rempart::worker
