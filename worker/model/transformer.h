// SPDX-License-Identifier: Apache-2.0
// The one decoder of all families, driven by ModelConfig. It owns the memory of the paged KV cache;
// who holds which block is decided elsewhere (worker/cache).
//
// Invariants:
//  1. Everything is allocated at construction; Forward allocates nothing that grows with use.
//  2. Logits of a sequence do not depend on what else is in the batch, nor on how its tokens are
//  cut
//     into steps: bit for bit.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "worker/device/thread_pool.h"
#include "worker/model/step_batch.h"
#include "worker/model/weights.h"

namespace rempart::worker {

struct TransformerOptions {
  int64_t kv_blocks = 0;          // of kernels::kKvBlockTokens tokens
  int64_t max_step_tokens = 512;  // of all slices of a step
  int64_t max_step_logits = 64;   // slices of a step that want logits
  kernels::DType kv_type = kernels::DType::kF16;
  bool exact = false;  // F32 activations instead of int8
};

// Bytes of one KV block over all layers.
int64_t KvBytesPerBlock(const ModelConfig& config, kernels::DType kv_type);

class Transformer {
 public:
  // Weights, ops and pool outlive it. ResourceExhausted says how much memory was missing.
  static absl::StatusOr<std::unique_ptr<Transformer>> Create(const ModelConfig& config,
                                                             const Weights& weights,
                                                             const kernels::Ops& ops,
                                                             ThreadPool& pool,
                                                             const TransformerOptions& options);

  // Does the batch's copies, then computes its slices. Row i of `logits` [num_wanting, vocabulary]
  // is for the i-th slice that wants logits. InvalidArgument, and nothing done, when the batch
  // exceeds the options or names tokens or blocks that do not exist.
  absl::Status Forward(const StepBatch& batch, absl::Span<float> logits);

  const ModelConfig& config() const { return config_; }

 private:
  struct Product {
    const Matrix* matrix;
    float* y;
    int64_t y_stride;
  };
  struct AttentionWork {
    int32_t slice;
    int64_t begin, end;
  };

  Transformer(const ModelConfig& config, const Weights& weights, const kernels::Ops& ops,
              ThreadPool& pool, const TransformerOptions& options);
  absl::Status Allocate();
  absl::Status Check(const StepBatch& batch, absl::Span<float> logits) const;
  void CopyBlocks(const StepBatch& batch);
  void Embed(const StepBatch& batch);
  void Attend(const StepBatch& batch, size_t layer);
  void RotateAndStore(const StepBatch& batch, size_t layer);
  void FeedForward(size_t layer);
  void Head(const StepBatch& batch, absl::Span<float> logits);
  // y = x W^T for each product, x [num_tokens, cols].
  void Multiply(const float* x, int64_t cols, int64_t num_tokens,
                absl::Span<const Product> products);
  void Norm(const float* x, const std::vector<float>& weight, int64_t num_tokens, float* out);
  // residual += branch, normalised first where the family does.
  void AddBranch(const std::vector<float>& post_norm);
  kernels::KvView KvOf(size_t layer) const;

  const ModelConfig config_;
  const Weights& weights_;
  const kernels::Ops& ops_;
  ThreadPool& pool_;
  const TransformerOptions options_;

  std::unique_ptr<void, FreeDeleter> kv_;
  uint8_t* kv_base_ = nullptr;  // kv_, aligned to 64 bytes
  int64_t num_tokens_ = 0;      // of the step
  std::vector<int32_t> ids_, positions_;
  std::vector<float> residual_, normed_, qkv_, attended_, branch_, gate_up_, last_;
  std::vector<float> cos_, sin_;  // [ropes][max_step_tokens, half]
  std::vector<kernels::ActivationBlock> quantized_;
  std::vector<AttentionWork> work_;
  std::vector<int64_t> slice_firsts_;  // row of each slice's first token
};

}  // namespace rempart::worker
