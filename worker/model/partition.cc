// SPDX-License-Identifier: Apache-2.0
#include "worker/model/partition.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "kernels/ops.h"

namespace rempart::worker {
namespace {

// Of one group, as the communicators have it.
constexpr int kMaxTensorParallel = 64;
constexpr int64_t kLargestBlock = 256;  // of columns, in any format

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

// The same, in shares of equal size: what is left of the last is less, or nothing.
std::vector<int64_t> CutEvenly(int64_t total, int64_t unit, int size) {
  const int64_t units = (total + unit - 1) / unit;
  const int64_t share = (units + size - 1) / size * unit;
  std::vector<int64_t> offsets(size + 1);
  for (int rank = 0; rank <= size; ++rank) offsets[rank] = std::min(total, rank * share);
  return offsets;
}

// Of the second matrix of a pair, which is cut by columns: whole blocks of any format where every
// rank gets one, else as large a unit as gives each rank something.
int64_t ColumnUnit(int64_t total, int size) {
  constexpr int64_t kLeast = 8;
  int64_t unit = kLargestBlock;
  while (unit > kLeast && (total % unit != 0 || total / unit < size)) unit /= 2;
  return unit;
}

// Weights of one layer and of the LM head.
int64_t LayerParameters(const ModelConfig& config) {
  const int64_t queries = config.heads * config.head_dim;
  const int64_t keys = config.kv_heads * config.head_dim;
  return config.hidden * (2 * queries + 2 * keys + 3 * config.ffn);
}
int64_t HeadParameters(const ModelConfig& config) { return config.vocabulary * config.hidden; }

// Of a layer, and of what the first and the last stage have besides.
struct StageWeights {
  int64_t layer, before, after;
};

// The least that the stage with most weights can have, where each has a layer.
int64_t LeastLargestStage(const StageWeights& weights, int64_t layers, int64_t stages) {
  const auto fits = [&](int64_t most) {
    const int64_t first = most - weights.before, last = most - weights.after;
    return first >= weights.layer && last >= weights.layer &&
           first / weights.layer + last / weights.layer + (stages - 2) * (most / weights.layer) >=
               layers;
  };
  int64_t least = INT64_MAX;
  for (int64_t count = 1; count <= layers; ++count) {
    for (const int64_t beside : {int64_t{0}, weights.before, weights.after}) {
      const int64_t most = count * weights.layer + beside;
      if (most < least && fits(most)) least = most;
    }
  }
  return least;
}

}  // namespace

RankPosition PositionOf(int group_rank, int tensor, int stages) {
  return {group_rank % tensor, tensor, group_rank / tensor, stages};
}

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

absl::Status CheckPipelineParallel(const ModelConfig& config, int stages) {
  const auto layers = static_cast<int64_t>(config.layers.size());
  if (stages >= 1 && stages <= layers) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("parallelism.pipeline is ", stages,
                                                 ", but the model has ", layers,
                                                 " layers: set at most ", layers));
}

std::vector<int64_t> CutLayers(const ModelConfig& config, int stages, MatrixCut cut) {
  const auto layers = static_cast<int64_t>(config.layers.size());
  if (stages == 1) return {0, layers};
  CHECK(stages > 1 && stages <= layers);
  const StageWeights weights = {LayerParameters(config),
                                cut == MatrixCut::kPairs ? HeadParameters(config) : 0,
                                HeadParameters(config)};
  const int64_t most = LeastLargestStage(weights, layers, stages);
  const int64_t others = stages - 1;
  // As many in the last stage as it may have: the others hold less.
  const int64_t of_last = std::min((most - weights.after) / weights.layer, layers - others);
  const int64_t left = layers - of_last;
  const int64_t of_first = (most - weights.before) / weights.layer;
  const bool is_even = of_first >= left / others;
  std::vector<int64_t> offsets = {0};
  for (int64_t stage = 1; stage <= others; ++stage) {
    offsets.push_back(is_even ? left * stage / others
                              : of_first + (left - of_first) * (stage - 1) /
                                               std::max<int64_t>(1, others - 1));
  }
  offsets.push_back(layers);
  return offsets;
}

Partition MakePartition(const ModelConfig& config, const RankPosition& of, MatrixCut cut) {
  CHECK(of.rank >= 0 && of.rank < of.size && Divides(config, of.size));
  CHECK(of.stage >= 0 && of.stage < of.stages);
  Partition partition;
  partition.of = of;
  partition.cut = cut;
  const std::vector<int64_t> stages = CutLayers(config, of.stages, cut);
  partition.layers = {stages[of.stage], stages[of.stage + 1]};
  const int64_t heads = config.heads / of.size;
  partition.heads = {of.rank * heads, (of.rank + 1) * heads};
  const int64_t per_kv_head = config.heads / config.kv_heads;
  partition.kv_heads = {partition.heads.begin / per_kv_head,
                        (partition.heads.end - 1) / per_kv_head + 1};
  partition.attended.resize(of.size + 1);
  for (int rank = 0; rank <= of.size; ++rank) {
    partition.attended[rank] = rank * heads * config.head_dim;
  }
  if (cut == MatrixCut::kPairs) {
    const Range own = partition.Own(partition.attended);
    partition.attended_blocks = {
        own.begin / kLargestBlock * kLargestBlock,
        std::min(partition.attended.back(),
                 (own.end + kLargestBlock - 1) / kLargestBlock * kLargestBlock)};
    partition.ffn = Cut(config.ffn, ColumnUnit(config.ffn, of.size), of.size);
    partition.vocabulary = CutEvenly(config.vocabulary, kernels::kRowAlign, of.size);
    return partition;
  }
  // Whole groups of int8 activations, so that each rank quantises what it has computed.
  partition.ffn = Cut(config.ffn, kernels::kActivationGroup, of.size);
  partition.hidden = Cut(config.hidden, kernels::kRowAlign, of.size);
  partition.vocabulary = Cut(config.vocabulary, kernels::kRowAlign, of.size);
  return partition;
}

}  // namespace rempart::worker
