// SPDX-License-Identifier: Apache-2.0
// A model file, opened and ready to compute, for tests.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "common/status_macros.h"
#include "worker/model/families/families.h"
#include "worker/model/gguf.h"
#include "worker/model/mapped_file.h"
#include "worker/model/transformer.h"

namespace rempart::worker {

class WholeModel {
 public:
  WholeModel(const std::string& path, const kernels::Ops& ops, bool exact, int threads = 2,
             kernels::DType kv_type = kernels::DType::kF32)
      : pool_({.threads = threads}) {
    const absl::Status status = Open(path, ops, exact, kv_type);
    if (!status.ok()) ADD_FAILURE() << status;
  }

  bool ok() const { return transformer_ != nullptr; }
  Transformer& transformer() { return *transformer_; }
  int64_t vocabulary() const { return transformer_->config().vocabulary; }
  absl::Span<const int32_t> table() const { return table_; }

  // Logits after each of `ids`, teacher-forced from position 0: [ids.size(), vocabulary].
  std::vector<float> Logits(const std::vector<int32_t>& ids) {
    std::vector<float> logits(ids.size() * vocabulary());
    for (size_t i = 0; i < ids.size(); ++i) {
      StepBatch batch;
      batch.slices.push_back({{&ids[i], 1}, static_cast<int32_t>(i), table_, true});
      EXPECT_TRUE(
          transformer_
              ->Forward(batch, absl::MakeSpan(logits).subspan(i * vocabulary(), vocabulary()))
              .ok());
    }
    return logits;
  }

 private:
  absl::Status Open(const std::string& path, const kernels::Ops& ops, bool exact,
                    kernels::DType kv_type) {
    ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
    file_ = std::make_unique<MappedFile>(std::move(file));
    ASSIGN_OR_RETURN(gguf_, ParseGguf(path, file_->bytes()));
    ASSIGN_OR_RETURN(const ModelConfig config, ReadModelConfig(gguf_));
    ASSIGN_OR_RETURN(weights_, BindWeights(gguf_.tensors, config, ops, {.pack = !exact}, pool_));
    TransformerOptions options;
    options.kv_blocks = 64;
    options.kv_type = kv_type;
    options.exact = exact;
    ASSIGN_OR_RETURN(transformer_, Transformer::Create(config, weights_, ops, pool_, options));
    table_.resize(options.kv_blocks);
    std::iota(table_.begin(), table_.end(), 0);
    return absl::OkStatus();
  }

  ThreadPool pool_;
  std::unique_ptr<MappedFile> file_;
  GgufFile gguf_;
  Weights weights_;
  std::unique_ptr<Transformer> transformer_;
  std::vector<int32_t> table_;
};

}  // namespace rempart::worker
