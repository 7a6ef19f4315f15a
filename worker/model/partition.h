// SPDX-License-Identifier: Apache-2.0
// Which part of a model each rank of a group holds and computes.
//
// Layers are cut into stages (docs/adr/0022-pipeline-stages.md); each stage is computed by ranks
// that share its matrices. On CPUs every matrix is cut by rows, that is by outputs, and what the
// ranks have computed is gathered before the next product reads it. No sum is ever spread over
// ranks, so every number is computed by the same operations in the same order as on one rank:
// logits are equal bit for bit. On GPUs matrices are cut in pairs, and sums are
// (docs/adr/0027-ranks-on-gpus.md).
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "worker/model/model_config.h"

namespace rempart::worker {

// Where a rank stands in its group: the rank-th of `size` that compute the layers of a stage
// together, in the stage-th of `stages`.
struct RankPosition {
  int rank = 0;
  int size = 1;
  int stage = 0;
  int stages = 1;

  int group_rank() const { return stage * size + rank; }
  int group_size() const { return stages * size; }
  // The first of its stage, as the group counts.
  int first_of_stage() const { return stage * size; }
  bool is_first_stage() const { return stage == 0; }
  bool is_last_stage() const { return stage == stages - 1; }
};

// Of rank `group_rank` in `stages` stages of `tensor` ranks.
RankPosition PositionOf(int group_rank, int tensor, int stages);

enum class MatrixCut {
  kOutputs,  // each by rows: ranks gather their parts of every product
  // The first of two by rows, the second by the columns that read these: ranks add up what the
  // second gives. The embedding is cut as the head is, and its rows are added up, too.
  kPairs,
};

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t count() const { return end - begin; }
};

struct Partition {
  RankPosition of;
  MatrixCut cut = MatrixCut::kOutputs;
  Range layers;  // of the model; at least one
  Range heads;   // of queries, as many on each rank
  Range
      kv_heads;  // that these read. Where ranks outnumber KV heads, several ranks hold the same one
  // Rank r has [offsets[r], offsets[r + 1]): columns of what attention puts out, rows of the FFN,
  // of the hidden state and of the vocabulary. Of kPairs, hidden is empty, for every
  // rank has all of it, and no rank has more of the vocabulary than the first.
  std::vector<int64_t> attended, ffn, hidden, vocabulary;
  // Of kPairs: the rank's own columns of what attention puts out, and as many beside them as make
  // whole blocks of any format: a matrix whose blocks are cut by the shares is read so far, and its
  // input there is zero.
  Range attended_blocks;

  Range Own(const std::vector<int64_t>& offsets) const {
    return {offsets[of.rank], offsets[of.rank + 1]};
  }
};

// Numbers of ranks that `config` can be cut into, ascending: the query heads divide evenly, and
// either the KV heads do too or each is held by the same number of ranks.
std::vector<int> AllowedTensorParallel(const ModelConfig& config);
// InvalidArgument with that list when `size` is not in it.
absl::Status CheckTensorParallel(const ModelConfig& config, int size);
// InvalidArgument when a stage would have no layer.
absl::Status CheckPipelineParallel(const ModelConfig& config, int stages);
// Stage s has the layers [offsets[s], offsets[s + 1]): so many that the largest share of the
// weights is as small as it can be. The last stage has the LM head as well. The embedding is of the
// first where matrices are cut in pairs; else it is looked up in the file and costs nothing.
std::vector<int64_t> CutLayers(const ModelConfig& config, int stages,
                               MatrixCut cut = MatrixCut::kOutputs);
// `of.size` and `of.stages` are allowed.
Partition MakePartition(const ModelConfig& config, const RankPosition& of,
                        MatrixCut cut = MatrixCut::kOutputs);

}  // namespace rempart::worker
