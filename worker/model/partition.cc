// SPDX-License-Identifier: Apache-2.0
#include "worker/model/partition.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "kernels/ops.h"

namespace rempart::worker {
namespace {

// Of one group, as the communicators have it.
constexpr int kMaxTensorParallel = 64;

bool Divides(const ModelConfig& config, int size) {
  if (config.heads % size != 0) return false;
  return config.kv_heads % size == 0 || size % config.kv_heads == 0;
}

// `total` in whole units of `unit`, as evenly as they allow; the last rank has the rest.
std::vector<int64_t> Cut(int64_t total, int64_t unit, int size) {
  const int64_t units = (total + unit - 1) / unit;
  std::vector<int64_t> offsets(size + 1);
  for (int rank = 0; rank <= size; ++rank) {
    offsets[rank] = std::min(total, units * rank / size * unit);
  }
  return offsets;
}

}  // namespace

std::vector<int> AllowedTensorParallel(const ModelConfig& config) {
  std::vector<int> allowed;
  for (int size = 1; size <= kMaxTensorParallel; ++size) {
    if (Divides(config, size)) allowed.push_back(size);
  }
  return allowed;
}

absl::Status CheckTensorParallel(const ModelConfig& config, int size) {
  if (size >= 1 && size <= kMaxTensorParallel && Divides(config, size)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "parallelism.tensor is ", size, ", but ", config.heads, " attention heads over ",
      config.kv_heads, " KV heads can be shared by ",
      absl::StrJoin(AllowedTensorParallel(config), ", "), " ranks only: set one of these"));
}

Partition MakePartition(const ModelConfig& config, const TensorParallel& of) {
  CHECK(of.rank >= 0 && of.rank < of.size && Divides(config, of.size));
  Partition partition;
  partition.of = of;
  const int64_t heads = config.heads / of.size;
  partition.heads = {of.rank * heads, (of.rank + 1) * heads};
  const int64_t per_kv_head = config.heads / config.kv_heads;
  partition.kv_heads = {partition.heads.begin / per_kv_head,
                        (partition.heads.end - 1) / per_kv_head + 1};
  partition.attended.resize(of.size + 1);
  for (int rank = 0; rank <= of.size; ++rank) {
    partition.attended[rank] = rank * heads * config.head_dim;
  }
  // Whole groups of int8 activations, so that each rank quantises what it has computed.
  partition.ffn = Cut(config.ffn, kernels::kActivationGroup, of.size);
  partition.hidden = Cut(config.hidden, kernels::kRowAlign, of.size);
  partition.vocabulary = Cut(config.vocabulary, kernels::kRowAlign, of.size);
  return partition;
}

}  // namespace rempart::worker
