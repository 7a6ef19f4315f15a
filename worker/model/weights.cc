// SPDX-License-Identifier: Apache-2.0
#include "worker/model/weights.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/model/copy_weights.h"

namespace rempart::worker {
namespace {

constexpr char kEmbedding[] = "token_embd.weight";

// A run of rows of a named tensor.
struct Rows {
  std::string name;
  int64_t first = 0;
  int64_t count = 0;
  int64_t total = 0;  // that the tensor must have

  Rows Part(const Range& range) const { return {name, first + range.begin, range.count(), total}; }
};

class Binder {
 public:
  Binder(const TensorMap& tensors, const kernels::Ops& ops) : tensors_(tensors), ops_(ops) {}

  bool Has(const std::string& name) const { return tensors_.contains(name); }
  int64_t bytes_read() const { return bytes_read_; }

  absl::Status Bind(const Rows& rows, int64_t cols, Matrix& matrix) {
    ASSIGN_OR_RETURN(const TensorView* tensor, Find(rows.name, rows.total, cols));
    if (tensor->quantized != nullptr) {
      return BindQuantized(*tensor, {rows.first, rows.first + rows.count}, {0, cols}, matrix);
    }
    const int64_t offset = rows.first * kernels::RowBytes(tensor->type, cols);
    matrix.view = {tensor->data + offset, tensor->type, rows.count, cols};
    bytes_read_ += rows.count * kernels::RowBytes(tensor->type, cols);
    return absl::OkStatus();
  }
  // The columns `own` of all rows, and as many within `most` as make whole blocks.
  absl::Status BindColumns(const std::string& name, int64_t rows, int64_t cols, const Range& own,
                           const Range& most, Matrix& matrix) {
    ASSIGN_OR_RETURN(const TensorView* tensor, Find(name, rows, cols));
    const bool is_quantized = tensor->quantized != nullptr;
    const int64_t block =
        is_quantized ? ColumnUnit(*tensor->quantized) : kernels::BlockElements(tensor->type);
    // The last block of a quantised matrix may be shorter.
    const Range part = {own.begin / block * block,
                        std::min(cols, (own.end + block - 1) / block * block)};
    if (part.begin < most.begin || part.end > most.end) {
      return absl::FailedPreconditionError(absl::StrCat(
          is_quantized ? tensor->name : name, ": ",
          is_quantized ? "its" : kernels::DTypeName(tensor->type), " weights come in blocks of ",
          block, " columns, and ranks on GPUs would cut them at columns ", own.begin, " and ",
          own.end, ": set parallelism.tensor to fewer ranks, or take a file of another format"));
    }
    matrix.lead = own.begin - part.begin;
    if (is_quantized) return BindQuantized(*tensor, {0, rows}, part, matrix);
    matrix.view = {tensor->data + kernels::RowBytes(tensor->type, part.begin), tensor->type, rows,
                   part.count()};
    if (part.count() < cols) matrix.stride_bytes = kernels::RowBytes(tensor->type, cols);
    bytes_read_ += rows * kernels::RowBytes(tensor->type, part.count());
    return absl::OkStatus();
  }
  // Rows are read where they lie, when they are needed.
  absl::Status BindLookup(const std::string& name, int64_t rows, int64_t cols, Matrix& matrix) {
    ASSIGN_OR_RETURN(const TensorView* tensor, FindPlain(name, rows, cols));
    matrix.view = {tensor->data, tensor->type, rows, cols};
    return absl::OkStatus();
  }

  absl::Status BindVector(const std::string& name, int64_t size, std::vector<float>& vector) {
    return BindVector({name, 0, size, size}, vector);
  }
  absl::Status BindVector(const Rows& range, std::vector<float>& vector) {
    ASSIGN_OR_RETURN(const TensorView* tensor, FindPlain(range.name, 1, range.total));
    bytes_read_ += tensor->bytes;
    std::vector<float> whole(range.total);
    ops_.dequantize({tensor->data, tensor->type, 1, range.total}, whole.data(), 0, 1);
    vector.assign(whole.begin() + range.first, whole.begin() + range.first + range.count);
    return absl::OkStatus();
  }

  // Tensors of this name, or whose names begin with it, are another stage's.
  void LeaveToOthers(absl::string_view name) { others_.emplace_back(name); }

  // A tensor that nothing has asked for would change what the model computes.
  absl::Status CheckAllUsed() const {
    for (const auto& [name, tensor] : tensors_) {
      // Factors of the rotary embedding were read with the configuration.
      if (used_.contains(name) || absl::StartsWith(name, "rope_") || IsOfOthers(name)) continue;
      return absl::UnimplementedError(
          absl::StrCat("the tensor ", name, " ", tensor.ShapeText(),
                       " is not part of this architecture as this version computes it"));
    }
    return absl::OkStatus();
  }

 private:
  // Rows and columns of a quantised matrix.
  absl::Status BindQuantized(const TensorView& tensor, const Range& rows, const Range& cols,
                             Matrix& matrix) {
    const QuantizedMatrix& whole = *tensor.quantized;
    const int64_t unit = RowUnit(whole);
    if (rows.begin % unit != 0 || rows.count() % unit != 0) {
      return absl::FailedPreconditionError(absl::StrCat(
          whole.name, ": its weights come in runs of ", unit, " rows, and ranks would cut them at ",
          rows.begin, " and ", rows.end,
          ": set parallelism.tensor to fewer ranks, or take a file of another format"));
    }
    matrix.view = {nullptr, tensor.type, rows.count(), cols.count()};
    matrix.quantized = tensor.quantized;
    matrix.first_row = rows.begin;
    matrix.first_col = cols.begin;
    const double share = static_cast<double>(rows.count()) / static_cast<double>(whole.rows) *
                         static_cast<double>(cols.count()) / static_cast<double>(whole.cols);
    bytes_read_ += static_cast<int64_t>(static_cast<double>(tensor.bytes) * share);
    return absl::OkStatus();
  }

  absl::StatusOr<const TensorView*> FindPlain(const std::string& name, int64_t rows, int64_t cols) {
    ASSIGN_OR_RETURN(const TensorView* tensor, Find(name, rows, cols));
    if (tensor->is_plain()) return tensor;
    return absl::UnimplementedError(
        absl::StrCat("the tensor ", tensor->name,
                     " is quantised; it is served in F32, F16 and BF16 alone: use "
                     "another version of the model, or a GGUF file of it"));
  }

  absl::StatusOr<const TensorView*> Find(const std::string& name, int64_t rows, int64_t cols) {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) {
      return absl::InvalidArgumentError(absl::StrCat("the tensor ", name, " is missing"));
    }
    const TensorView& tensor = found->second;
    if (tensor.rows() != rows || tensor.cols() != cols || tensor.shape.size() > 2) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the tensor ", name, " is ", tensor.ShapeText(), " instead of [", rows, ", ", cols, "]"));
    }
    used_.insert(name);
    return &tensor;
  }

  bool IsOfOthers(const std::string& name) const {
    return std::any_of(others_.begin(), others_.end(),
                       [&](const std::string& prefix) { return absl::StartsWith(name, prefix); });
  }

  const TensorMap& tensors_;
  const kernels::Ops& ops_;
  std::vector<std::string> others_;
  absl::flat_hash_set<std::string> used_;
  int64_t bytes_read_ = 0;
};

// Matrix and bias of one of a layer's products; `name` without ".weight".
absl::Status BindLinear(Binder& binder, Rows rows, int64_t cols, bool bias, Matrix& matrix) {
  const std::string name = rows.name;
  rows.name = name + ".weight";
  RETURN_IF_ERROR(binder.Bind(rows, cols, matrix));
  if (!bias) return absl::OkStatus();
  rows.name = name + ".bias";
  return binder.BindVector(rows, matrix.bias);
}

// Which columns of a second matrix's input are what this rank has computed, and how many of them
// there may be with zeros around these.
struct Columns {
  Range own, most;
};

// The second matrix of a pair, which reads `cols` columns. `name` without ".weight".
absl::Status BindSecond(Binder& binder, const Partition& partition, const std::string& name,
                        int64_t rows, int64_t cols, const Columns& columns, bool bias,
                        Matrix& matrix) {
  const Rows all = {name, 0, rows, rows};
  if (partition.cut == MatrixCut::kOutputs) {
    return BindLinear(binder, all.Part(partition.Own(partition.hidden)), cols, bias, matrix);
  }
  RETURN_IF_ERROR(
      binder.BindColumns(name + ".weight", rows, cols, columns.own, columns.most, matrix));
  if (!bias) return absl::OkStatus();
  return binder.BindVector(name + ".bias", rows, matrix.bias);
}

absl::Status BindAttention(Binder& binder, const ModelConfig& config, const Partition& partition,
                           const std::string& prefix, LayerWeights& layer) {
  const int64_t hidden = config.hidden;
  const int64_t queries = config.heads * config.head_dim;
  const int64_t keys = config.kv_heads * config.head_dim;
  const Range own_queries = partition.Own(partition.attended);
  const Range own_keys = {partition.kv_heads.begin * config.head_dim,
                          partition.kv_heads.end * config.head_dim};
  const bool bias = config.qkv_bias;
  RETURN_IF_ERROR(binder.BindVector(prefix + "attn_norm.weight", hidden, layer.attention_norm));
  Rows query = {prefix + "attn_q", 0, queries, queries};
  Rows key = {prefix + "attn_k", 0, keys, keys};
  Rows value = {prefix + "attn_v", 0, keys, keys};
  if (binder.Has(prefix + "attn_qkv.weight")) {
    const std::string name = prefix + "attn_qkv";
    const int64_t all = queries + 2 * keys;
    query = {name, 0, queries, all};
    key = {name, queries, keys, all};
    value = {name, queries + keys, keys, all};
  }
  RETURN_IF_ERROR(BindLinear(binder, query.Part(own_queries), hidden, bias, layer.query));
  RETURN_IF_ERROR(BindLinear(binder, key.Part(own_keys), hidden, bias, layer.key));
  RETURN_IF_ERROR(BindLinear(binder, value.Part(own_keys), hidden, bias, layer.value));
  RETURN_IF_ERROR(BindSecond(binder, partition, prefix + "attn_output", hidden, queries,
                             {own_queries, partition.attended_blocks}, config.output_bias,
                             layer.output));
  if (config.qk_norm) {
    RETURN_IF_ERROR(
        binder.BindVector(prefix + "attn_q_norm.weight", config.head_dim, layer.query_norm));
    RETURN_IF_ERROR(
        binder.BindVector(prefix + "attn_k_norm.weight", config.head_dim, layer.key_norm));
  }
  return absl::OkStatus();
}

absl::Status BindFfn(Binder& binder, const ModelConfig& config, const Partition& partition,
                     const std::string& prefix, LayerWeights& layer) {
  const int64_t hidden = config.hidden;
  const int64_t ffn = config.ffn;
  const bool bias = config.ffn_bias;
  RETURN_IF_ERROR(binder.BindVector(prefix + "ffn_norm.weight", hidden, layer.ffn_norm));
  Rows gate = {prefix + "ffn_gate", 0, ffn, ffn};
  Rows up = {prefix + "ffn_up", 0, ffn, ffn};
  if (!binder.Has(prefix + "ffn_gate.weight")) {
    gate = {prefix + "ffn_up", 0, ffn, 2 * ffn};
    up = {prefix + "ffn_up", ffn, ffn, 2 * ffn};
  }
  const Range own = partition.Own(partition.ffn);
  RETURN_IF_ERROR(BindLinear(binder, gate.Part(own), hidden, bias, layer.gate));
  RETURN_IF_ERROR(BindLinear(binder, up.Part(own), hidden, bias, layer.up));
  RETURN_IF_ERROR(BindSecond(binder, partition, prefix + "ffn_down", hidden, ffn, {own, own}, bias,
                             layer.down));
  if (!config.post_norms) return absl::OkStatus();
  RETURN_IF_ERROR(
      binder.BindVector(prefix + "post_attention_norm.weight", hidden, layer.post_attention_norm));
  return binder.BindVector(prefix + "post_ffw_norm.weight", hidden, layer.post_ffn_norm);
}

// What comes before the first layer and after the last one.
absl::Status BindEnds(Binder& binder, const ModelConfig& config, Weights& weights) {
  const RankPosition& of = weights.partition.of;
  const std::string head = binder.Has("output.weight") ? "output.weight" : kEmbedding;
  const Range own = weights.partition.Own(weights.partition.vocabulary);
  const bool is_cut = weights.partition.cut == MatrixCut::kPairs;
  // Of pairs, the same rows of the embedding, which may be the same matrix.
  const bool is_head = is_cut && of.is_last_stage() && head == kEmbedding;
  if (!of.is_first_stage()) {
    binder.LeaveToOthers(kEmbedding);
  } else if (!is_cut) {
    RETURN_IF_ERROR(
        binder.BindLookup(kEmbedding, config.vocabulary, config.hidden, weights.embedding));
  } else if (!is_head) {
    const Rows rows = {kEmbedding, 0, config.vocabulary, config.vocabulary};
    RETURN_IF_ERROR(binder.Bind(rows.Part(own), config.hidden, weights.embedding));
  }
  if (!of.is_last_stage()) {
    binder.LeaveToOthers("output.weight");
    binder.LeaveToOthers("output_norm.weight");
    return absl::OkStatus();
  }
  const Rows rows = {head, 0, config.vocabulary, config.vocabulary};
  RETURN_IF_ERROR(binder.Bind(rows.Part(own), config.hidden, weights.head));
  if (of.is_first_stage() && is_head) weights.embedding = weights.head;
  return binder.BindVector("output_norm.weight", config.hidden, weights.output_norm);
}

void AddToNorms(float offset, Weights& weights) {
  const auto add = [&](std::vector<float>& norm) {
    for (float& weight : norm) weight += offset;
  };
  add(weights.output_norm);
  for (LayerWeights& layer : weights.layers) {
    for (std::vector<float>* norm :
         {&layer.attention_norm, &layer.ffn_norm, &layer.query_norm, &layer.key_norm,
          &layer.post_attention_norm, &layer.post_ffn_norm}) {
      add(*norm);
    }
  }
}

}  // namespace

std::vector<Matrix*> ProductMatrices(Weights& weights) {
  std::vector<Matrix*> matrices;
  if (weights.partition.of.is_last_stage()) matrices.push_back(&weights.head);
  for (LayerWeights& layer : weights.layers) {
    for (Matrix* matrix : {&layer.query, &layer.key, &layer.value, &layer.output, &layer.gate,
                           &layer.up, &layer.down}) {
      matrices.push_back(matrix);
    }
  }
  return matrices;
}

absl::StatusOr<Weights> BindTensors(const TensorMap& tensors, const ModelConfig& config,
                                    const kernels::Ops& ops, const RankPosition& of,
                                    MatrixCut cut) {
  RETURN_IF_ERROR(CheckTensorParallel(config, of.size));
  RETURN_IF_ERROR(CheckPipelineParallel(config, of.stages));
  Binder binder(tensors, ops);
  Weights weights;
  weights.partition = MakePartition(config, of, cut);
  const Partition& partition = weights.partition;
  RETURN_IF_ERROR(BindEnds(binder, config, weights));
  weights.layers.resize(partition.layers.count());
  for (int64_t i = 0; i < static_cast<int64_t>(config.layers.size()); ++i) {
    const std::string prefix = absl::StrCat("blk.", i, ".");
    if (i < partition.layers.begin || i >= partition.layers.end) {
      binder.LeaveToOthers(prefix);
      continue;
    }
    LayerWeights& layer = weights.layers[i - partition.layers.begin];
    RETURN_IF_ERROR(BindAttention(binder, config, partition, prefix, layer));
    RETURN_IF_ERROR(BindFfn(binder, config, partition, prefix, layer));
  }
  weights.bytes_read = binder.bytes_read();
  RETURN_IF_ERROR(binder.CheckAllUsed());
  AddToNorms(config.norm_offset, weights);
  return weights;
}

absl::Status CopyWeights(const kernels::Ops& ops, const PackOptions& options, ThreadPool& pool,
                         Weights& weights) {
  if (options.expand == ExpandQuantized::kForCpu) {
    RETURN_IF_ERROR(ExpandWeights(ops, options, pool, weights));
  }
  return options.pack ? PackWeights(ops, options, pool, weights) : absl::OkStatus();
}

absl::StatusOr<Weights> BindWeights(const TensorMap& tensors, const ModelConfig& config,
                                    const kernels::Ops& ops, const PackOptions& options,
                                    ThreadPool& pool, const RankPosition& of, MatrixCut cut) {
  ASSIGN_OR_RETURN(Weights weights, BindTensors(tensors, config, ops, of, cut));
  FindRepacked(ops, options, weights);
  RETURN_IF_ERROR(CopyWeights(ops, options, pool, weights));
  return weights;
}

}  // namespace rempart::worker
