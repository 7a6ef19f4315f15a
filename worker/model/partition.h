// SPDX-License-Identifier: Apache-2.0
// Which part of a model each rank of a group holds and computes.
//
// Every matrix is cut by rows, that is by outputs, and what the ranks have computed is gathered
// before the next product reads it. No sum is ever spread over ranks, so every number is computed
// by the same operations in the same order as on one rank: logits are equal bit for bit.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "worker/model/model_config.h"

namespace rempart::worker {

// One rank of those that compute a layer together.
struct TensorParallel {
  int rank = 0;
  int size = 1;
};

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t count() const { return end - begin; }
};

struct Partition {
  TensorParallel of;
  Range heads;  // of queries, as many on each rank
  Range
      kv_heads;  // that these read. Where ranks outnumber KV heads, several ranks hold the same one
  // Rank r has [offsets[r], offsets[r + 1]): columns of what attention puts out, rows of the FFN,
  // of the hidden state and of the vocabulary.
  std::vector<int64_t> attended, ffn, hidden, vocabulary;

  Range Own(const std::vector<int64_t>& offsets) const {
    return {offsets[of.rank], offsets[of.rank + 1]};
  }
};

// Numbers of ranks that `config` can be cut into, ascending: the query heads divide evenly, and
// either the KV heads do too or each is held by the same number of ranks.
std::vector<int> AllowedTensorParallel(const ModelConfig& config);
// InvalidArgument with that list when `size` is not in it.
absl::Status CheckTensorParallel(const ModelConfig& config, int size);
// `of.size` is allowed.
Partition MakePartition(const ModelConfig& config, const TensorParallel& of);

}  // namespace rempart::worker
