// SPDX-License-Identifier: Apache-2.0
// The tensors of a model by their part in it, checked against its configuration, and the repacked
// copies that fast kernels read. Views into the mapped file, which must outlive them.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/ops.h"
#include "worker/device/thread_pool.h"
#include "worker/model/mapped_file.h"
#include "worker/model/model_config.h"
#include "worker/model/packed_memory.h"
#include "worker/model/partition.h"
#include "worker/model/quantized_matrix.h"
#include "worker/model/repack_cache.h"
#include "worker/model/tensor_view.h"

namespace rempart::worker {

struct FreeDeleter {
  void operator()(void* memory) const { std::free(memory); }
};

struct Matrix {
  // Its data are null where `quantized` has not been expanded, or `packed` is all there is of it.
  kernels::WeightView view;
  // Of a quantised folder: view.rows rows from first_row on, view.cols columns from first_col on.
  std::shared_ptr<const QuantizedMatrix> quantized;
  int64_t first_row = 0;
  int64_t first_col = 0;
  const void* packed = nullptr;  // in Weights::packed
  int64_t stride_bytes = 0;      // between rows that are cut from longer ones; 0: they are adjacent
  int64_t lead = 0;         // of its columns, the first that is the rank's own: blocks are not cut
  std::vector<float> bias;  // [rows], or empty
};

struct LayerWeights {
  std::vector<float> attention_norm, ffn_norm;
  std::vector<float> query_norm, key_norm;                // of qk_norm
  std::vector<float> post_attention_norm, post_ffn_norm;  // of post_norms
  Matrix query, key, value, output;
  Matrix gate, up, down;
};

// Those of one rank: the rows of its partition, in the layers of its stage; of MatrixCut::kPairs,
// the columns of output and down, of output with what shares a block with them. Norms are whole on
// every rank that has the layer. The embedding is of the first stage, and whole unless it is cut in
// pairs: a step reads one row for each token, straight from the file. The last norm and the head
// are of the last stage.
struct Weights {
  Partition partition;
  // Of the file, that this rank reads; without the looked up rows of the embedding.
  int64_t bytes_read = 0;
  Matrix embedding;  // [vocabulary, hidden]
  Matrix head;       // [vocabulary, hidden]; the embedding where the file has no output.weight
  std::vector<float> output_norm;
  std::vector<LayerWeights> layers;  // of the stage: the i-th is partition.layers.begin + i
  PackedMemory expanded;             // quantised matrices that kernels read as they are expanded
  PackedMemory packed;
  RepackKey packed_key;                     // under which a cache keeps `packed`
  std::optional<RepackDigests> from_cache;  // set when `packed` is a file of the cache
};

// What a CPU's kernels read that is not in the file.
enum class ExpandQuantized {
  kForCpu,  // quantised matrices of folders become blocks or BF16
  kNever,   // they stay as they are, for a device
};

// How the copies for int8 arithmetic come about.
struct PackOptions {
  bool pack = true;  // false: there are none
  ExpandQuantized expand = ExpandQuantized::kForCpu;
  // Where an earlier start may have left them; null: they are made.
  const RepackCache* cache = nullptr;
  Sha256 source = {};  // of SampleSource; with a cache
  // Where what is copied lies: given back on the way, so that copies and their source are never
  // resident together as a whole. Empty where it is not in files.
  absl::Span<const MappedFile> files = {};
  // Called with the bytes packed so far and their total.
  std::function<void(int64_t done, int64_t total)> on_progress = {};
};

// `tensors` have llama.cpp's names ("blk.0.attn_q.weight"). Query, key and value may be one tensor
// ("attn_qkv"), and so may gate and up ("ffn_up" with twice the rows, the gate's first).
// InvalidArgument names a tensor that is missing, misshapen or of no known use, and a number of
// ranks or stages that the model cannot be cut into; ResourceExhausted when memory is short.
// FailedPrecondition names a tensor whose format cannot be cut by columns for so many ranks.
absl::StatusOr<Weights> BindWeights(const TensorMap& tensors, const ModelConfig& config,
                                    const kernels::Ops& ops, const PackOptions& options,
                                    ThreadPool& pool, const RankPosition& of = {},
                                    MatrixCut cut = MatrixCut::kOutputs);

// The three steps of it. Views alone, and small vectors: nothing has been copied.
absl::StatusOr<Weights> BindTensors(const TensorMap& tensors, const ModelConfig& config,
                                    const kernels::Ops& ops, const RankPosition& of = {},
                                    MatrixCut cut = MatrixCut::kOutputs);
// Maps what an earlier start has left in options.cache, if there is any.
void FindRepacked(const kernels::Ops& ops, const PackOptions& options, Weights& weights);
// Makes the copies that kernels read, but those that have been found.
absl::Status CopyWeights(const kernels::Ops& ops, const PackOptions& options, ThreadPool& pool,
                         Weights& weights);

// Every matrix of a product: the head where there is one, and those of the layers.
std::vector<Matrix*> ProductMatrices(Weights& weights);

}  // namespace rempart::worker
