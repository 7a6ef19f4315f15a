// SPDX-License-Identifier: Apache-2.0
#include "worker/model/weights.h"

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace rempart::worker {
namespace {

constexpr int64_t kPackChunk = 256;

class Binder {
 public:
  Binder(const GgufFile& file, const kernels::Ops& ops, bool pack, ThreadPool& pool)
      : file_(file), ops_(ops), pack_(pack), pool_(pool) {}

  bool Has(const std::string& name) const { return file_.tensors.contains(name); }

  absl::Status Bind(const std::string& name, int64_t rows, int64_t cols, Matrix& matrix) {
    ASSIGN_OR_RETURN(const TensorView* tensor, Find(name, rows, cols));
    matrix.view = {tensor->data, tensor->type, rows, cols};
    if (!pack_) return absl::OkStatus();
    const int64_t bytes = ops_.packed_bytes(matrix.view);
    if (bytes == 0) return absl::OkStatus();
    void* memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (memory == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat("no memory for ", bytes >> 20, " MiB of repacked weights"));
    }
    matrix.packed.reset(memory);
    pool_.ParallelFor(rows, kPackChunk, [&](int64_t begin, int64_t end) {
      ops_.pack_rows(matrix.view, memory, begin, end);
    });
    return absl::OkStatus();
  }

  absl::Status BindVector(const std::string& name, int64_t size, std::vector<float>& vector) {
    ASSIGN_OR_RETURN(const TensorView* tensor, Find(name, 1, size));
    vector.resize(size);
    ops_.dequantize({tensor->data, tensor->type, 1, size}, vector.data(), 0, 1);
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<const TensorView*> Find(const std::string& name, int64_t rows, int64_t cols) {
    const auto found = file_.tensors.find(name);
    if (found == file_.tensors.end()) {
      return absl::InvalidArgumentError(absl::StrCat("the tensor ", name, " is missing"));
    }
    const TensorView& tensor = found->second;
    if (tensor.rows() != rows || tensor.cols() != cols || tensor.shape.size() > 2) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the tensor ", name, " is ", tensor.ShapeText(), " instead of [", rows, ", ", cols, "]"));
    }
    return &tensor;
  }

  const GgufFile& file_;
  const kernels::Ops& ops_;
  const bool pack_;
  ThreadPool& pool_;
};

absl::Status BindLayer(Binder& binder, const ModelConfig& config, size_t index,
                       LayerWeights& layer) {
  const std::string prefix = absl::StrCat("blk.", index, ".");
  const int64_t hidden = config.hidden;
  const int64_t queries = config.heads * config.head_dim;
  const int64_t keys = config.kv_heads * config.head_dim;
  for (const char* name : {"attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias"}) {
    if (binder.Has(prefix + name)) {
      return absl::UnimplementedError(absl::StrCat(prefix, name, ": biases are not served yet"));
    }
  }
  RETURN_IF_ERROR(binder.BindVector(prefix + "attn_norm.weight", hidden, layer.attention_norm));
  RETURN_IF_ERROR(binder.BindVector(prefix + "ffn_norm.weight", hidden, layer.ffn_norm));
  RETURN_IF_ERROR(binder.Bind(prefix + "attn_q.weight", queries, hidden, layer.query));
  RETURN_IF_ERROR(binder.Bind(prefix + "attn_k.weight", keys, hidden, layer.key));
  RETURN_IF_ERROR(binder.Bind(prefix + "attn_v.weight", keys, hidden, layer.value));
  RETURN_IF_ERROR(binder.Bind(prefix + "attn_output.weight", hidden, queries, layer.output));
  RETURN_IF_ERROR(binder.Bind(prefix + "ffn_gate.weight", config.ffn, hidden, layer.gate));
  RETURN_IF_ERROR(binder.Bind(prefix + "ffn_up.weight", config.ffn, hidden, layer.up));
  RETURN_IF_ERROR(binder.Bind(prefix + "ffn_down.weight", hidden, config.ffn, layer.down));
  if (config.qk_norm) {
    RETURN_IF_ERROR(
        binder.BindVector(prefix + "attn_q_norm.weight", config.head_dim, layer.query_norm));
    RETURN_IF_ERROR(
        binder.BindVector(prefix + "attn_k_norm.weight", config.head_dim, layer.key_norm));
  }
  if (config.post_norms) {
    RETURN_IF_ERROR(binder.BindVector(prefix + "post_attention_norm.weight", hidden,
                                      layer.post_attention_norm));
    RETURN_IF_ERROR(
        binder.BindVector(prefix + "post_ffw_norm.weight", hidden, layer.post_ffn_norm));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Weights> BindWeights(const GgufFile& file, const ModelConfig& config,
                                    const kernels::Ops& ops, bool pack, ThreadPool& pool) {
  Binder binder(file, ops, pack, pool);
  // The embedding is looked up by rows: no packed copy.
  Binder plain(file, ops, false, pool);
  Weights weights;
  RETURN_IF_ERROR(
      plain.Bind("token_embd.weight", config.vocabulary, config.hidden, weights.embedding));
  const char* head = binder.Has("output.weight") ? "output.weight" : "token_embd.weight";
  RETURN_IF_ERROR(binder.Bind(head, config.vocabulary, config.hidden, weights.head));
  RETURN_IF_ERROR(binder.BindVector("output_norm.weight", config.hidden, weights.output_norm));
  weights.layers.resize(config.layers.size());
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    RETURN_IF_ERROR(BindLayer(binder, config, i, weights.layers[i]));
  }
  return weights;
}

}  // namespace rempart::worker
