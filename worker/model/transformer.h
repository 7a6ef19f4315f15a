// SPDX-License-Identifier: Apache-2.0
// The one decoder of all families, driven by ModelConfig. It owns the memory of the paged KV cache;
// who holds which block is decided elsewhere (worker/cache).
//
// Invariants:
//  1. Everything is allocated at construction; Forward allocates nothing that grows with use.
//  2. Logits of a sequence do not depend on what else is in the batch, nor on how its tokens are
//  cut
//     into steps: bit for bit.
//  3. Nor do they depend on how many ranks share the model: each computes its rows of every
//     product in the layers of its stage, and gathers what the others have computed
//     (worker/model/partition.h). What leaves a stage is the residual in F32, bit for bit.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "worker/comm/communicator.h"
#include "worker/device/huge_vector.h"
#include "worker/device/thread_pool.h"
#include "worker/model/step_batch.h"
#include "worker/model/weights.h"

namespace rempart::worker {

struct TransformerOptions {
  int64_t kv_blocks = 0;          // of kernels::kKvBlockTokens tokens
  int64_t max_step_tokens = 512;  // of all slices of a step
  int64_t max_step_logits = 64;   // slices of a step that want logits
  kernels::DType kv_type = kernels::DType::kF16;
  bool exact = false;  // F32 activations instead of int8, or BF16 for BF16 weights
};

// Bytes of one KV block over all layers of its stage, as one rank holds it.
int64_t KvBytesPerBlock(const ModelConfig& config, kernels::DType kv_type,
                        const RankPosition& of = {});

class Transformer {
 public:
  // Weights, ops and pool outlive it. ResourceExhausted says how much memory was missing.
  static absl::StatusOr<std::unique_ptr<Transformer>> Create(const ModelConfig& config,
                                                             const Weights& weights,
                                                             const kernels::Ops& ops,
                                                             ThreadPool& pool,
                                                             const TransformerOptions& options);

  // Through which this rank talks to those that hold the other parts of the weights, from the next
  // Forward on; it outlives its use. A rank alone needs none. After an error of a communicator the
  // KV cache holds what nobody should read: sequences are computed again from their first token.
  void SetCommunicator(Communicator* communicator);

  // Does the batch's copies, then computes its slices. Row i of `logits` [num_wanting, vocabulary]
  // is for the i-th slice that wants logits. InvalidArgument, and nothing done, when the batch
  // exceeds the options or names tokens or blocks that do not exist.
  // All ranks call it with equal batches; the logits reach rank 0 alone, elsewhere they may be
  // empty. On rank 0 it returns once every stage has computed the batch. FailedPrecondition without
  // a communicator that fits; else its errors.
  absl::Status Forward(const StepBatch& batch, absl::Span<float> logits);

  const ModelConfig& config() const { return config_; }
  // That Create has allocated beside the KV cache, with what rank 0's caller has for its logits.
  int64_t workspace_bytes() const;

 private:
  struct Product {
    const Matrix* matrix;
    float* y;
    int64_t y_stride;
  };
  // What a product reads: x [num_tokens, cols], or the same in quantized_.
  struct Input {
    const float* x;
    int64_t cols;
    bool is_quantized;
  };
  struct AttentionWork {
    int32_t slice;
    int64_t begin, end;
  };

  Transformer(const ModelConfig& config, const Weights& weights, const kernels::Ops& ops,
              ThreadPool& pool, const TransformerOptions& options);
  absl::Status Allocate();
  absl::Status AllocateForOthers();
  absl::Status Check(const StepBatch& batch, absl::Span<float> logits) const;
  absl::Status CheckCommunicator() const;
  void CopyBlocks(const StepBatch& batch);
  // Through the layers of this stage. Logits go to the rows of `logits` from `first_row` on; adds
  // those of the batch to it.
  absl::Status ComputeMicroBatch(const StepBatch& batch, float* logits, int64_t& first_row);
  // From ids, or from the stage before, to the input of this stage's first layer.
  absl::Status Enter(const StepBatch& batch);
  absl::Status ReceiveResidual();
  absl::Status SendResidual();
  // Parts of the residual, in floats, by rank of the stage: each crosses a link of its own.
  std::vector<int64_t> ResidualParts() const;
  // Brings `rows` rows of logits to rank 0, or where there are none the word that it is done.
  absl::Status Finish(float* logits, int64_t rows);
  absl::Status Attend(const StepBatch& batch, size_t layer);
  void RotateAndStore(const StepBatch& batch, size_t layer);
  void ComputeAttention(const StepBatch& batch, size_t layer);
  absl::Status FeedForward(size_t layer);
  // Returns the number of rows that it has written to `logits`.
  int64_t Head(const StepBatch& batch, float* logits);
  // y = x W^T for each product.
  void Multiply(const Input& input, int64_t num_tokens, absl::Span<const Product> products);
  // From this rank's columns `part` [num_tokens_, own] of an input to all of it, for `reader`.
  absl::StatusOr<Input> Widen(const float* part, const std::vector<int64_t>& offsets,
                              const Matrix& reader);
  // Whether Widen can send int8 blocks, which each rank makes of its own columns.
  bool SendsBlocks(const std::vector<int64_t>& offsets, const Matrix& reader) const;
  // Of data [rows, offsets.back()], in which `unit` elements take `unit_bytes`.
  Shares SharesOf(void* data, int64_t rows, const std::vector<int64_t>& offsets, int64_t unit,
                  int64_t unit_bytes);
  // branch_ = input W^T of all ranks, in part computed by this one.
  absl::Status MultiplyIntoBranch(const Input& input, const Matrix& matrix);
  // Tokens [begin, end): normed_ from residual_, and where products are to read int8, quantized_.
  void NormTokens(const std::vector<float>& weight, int64_t begin, int64_t end);
  // What NormTokens has made of all tokens.
  Input Normed() const;
  // Whether products with so many columns are approximate (Ops::matmul_fast).
  bool IsFast(int64_t cols) const;
  bool ReadsRounded(const Matrix& matrix) const;
  bool ReadsBlocks(int64_t cols) const { return has_quantized_ && IsFast(cols); }
  // residual += branch, normalised first where the family does; then the norm of what comes next,
  // null after the last layer.
  void AddBranch(const std::vector<float>& post_norm, const std::vector<float>* next_norm);
  void StoreTokens(const StepBatch& batch, size_t layer, int64_t begin, int64_t end);
  // Query heads of one token that share a pass over their KV head.
  int64_t HeadsPerPass(size_t slices) const;
  // Layers are counted from the first of this stage.
  kernels::KvView KvOf(size_t layer) const;
  const LayerSpec& SpecOf(size_t layer) const {
    return config_.layers[partition_.layers.begin + static_cast<int64_t>(layer)];
  }

  const ModelConfig config_;
  const Weights& weights_;
  const kernels::Ops& ops_;
  ThreadPool& pool_;
  const TransformerOptions options_;
  const Partition& partition_;
  const int64_t heads_, kv_heads_, ffn_;        // of this rank
  Communicator* communicator_ = nullptr;        // of the group
  std::unique_ptr<Communicator> stage_part_;    // where there are several stages
  Communicator* stage_communicator_ = nullptr;  // of the ranks that share this stage

  std::unique_ptr<void, FreeDeleter> kv_;
  uint8_t* kv_base_ = nullptr;  // kv_, aligned to 64 bytes
  int64_t num_tokens_ = 0;      // of the step
  std::vector<int32_t> ids_, positions_;
  HugeVector<float> residual_, normed_, qkv_, attended_, branch_, gate_up_;
  std::vector<float> last_;
  std::vector<float> wide_;  // [max_step_tokens, columns of all ranks], where blocks do not do
  // [max_step_logits, vocabulary], in the last stage; rank 0 has the caller's.
  std::unique_ptr<float, FreeDeleter> logits_;
  std::vector<int64_t> share_offsets_;
  std::vector<int64_t> group_vocabulary_;  // rows of the head, by rank of the group
  std::vector<float> cos_, sin_;           // [ropes][max_step_tokens, half]
  // Whether this rank has matrices that read activations in blocks of int8, or rounded to BF16.
  bool has_quantized_ = false, has_rounding_ = false;
  HugeVector<kernels::ActivationBlock> quantized_;
  HugeVector<uint16_t> rounded_;
  std::vector<AttentionWork> work_;
  std::vector<int64_t> slice_firsts_;  // row of each slice's first token
};

}  // namespace rempart::worker
