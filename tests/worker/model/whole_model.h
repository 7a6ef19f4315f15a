// SPDX-License-Identifier: Apache-2.0
// A model file or folder, opened and ready to compute, for tests.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "common/status_macros.h"
#include "worker/model/model_source.h"
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

  // Logits after each of `ids` from `first` on, teacher-forced from position 0:
  // [ids.size() - first, vocabulary]. A step takes many tokens, each as a slice of its own, because
  // a slice gives logits of its last token.
  std::vector<float> Logits(const std::vector<int32_t>& ids, size_t first = 0) {
    constexpr size_t kStep = 64;
    std::vector<float> logits((ids.size() - first) * vocabulary());
    const absl::Span<const int32_t> all(ids);
    for (size_t begin = 0; begin < ids.size();) {
      StepBatch batch;
      if (begin < first) {
        batch.slices.push_back({all.subspan(0, first), 0, table_, false});
        begin = first;
      }
      const auto rows = absl::MakeSpan(logits).subspan((begin - first) * vocabulary());
      for (size_t i = 0; i < kStep && begin < ids.size(); ++i, ++begin) {
        batch.slices.push_back({all.subspan(begin, 1), static_cast<int32_t>(begin), table_, true});
      }
      const absl::Status status = transformer_->Forward(batch, rows);
      EXPECT_TRUE(status.ok()) << status;
    }
    return logits;
  }

  // The most likely token after `ids`, `count` times over.
  std::vector<int32_t> Greedy(std::vector<int32_t> ids, size_t count) {
    std::vector<int32_t> generated;
    std::vector<float> logits(vocabulary());
    int32_t position = 0;
    while (generated.size() < count) {
      StepBatch batch;
      batch.slices.push_back({ids, position, table_, true});
      const absl::Status status = transformer_->Forward(batch, absl::MakeSpan(logits));
      EXPECT_TRUE(status.ok()) << status;
      position += static_cast<int32_t>(ids.size());
      const auto best = std::max_element(logits.begin(), logits.end());
      ids = {static_cast<int32_t>(best - logits.begin())};
      generated.push_back(ids[0]);
    }
    return generated;
  }

 private:
  absl::Status Open(const std::string& path, const kernels::Ops& ops, bool exact,
                    kernels::DType kv_type) {
    ASSIGN_OR_RETURN(source_, OpenModel(path));
    ASSIGN_OR_RETURN(weights_,
                     BindWeights(source_.tensors, source_.config, ops, {.pack = !exact}, pool_));
    TransformerOptions options;
    options.kv_blocks = 64;
    options.kv_type = kv_type;
    options.exact = exact;
    ASSIGN_OR_RETURN(transformer_,
                     Transformer::Create(source_.config, weights_, ops, pool_, options));
    table_.resize(options.kv_blocks);
    std::iota(table_.begin(), table_.end(), 0);
    return absl::OkStatus();
  }

  ThreadPool pool_;
  ModelSource source_;
  Weights weights_;
  std::unique_ptr<Transformer> transformer_;
  std::vector<int32_t> table_;
};

}  // namespace rempart::worker
