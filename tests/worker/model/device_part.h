// SPDX-License-Identifier: Apache-2.0
// A rank's part of a small model on an emulated device, for tests of several ranks.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "tests/worker/model/random_model.h"
#include "worker/model/device_transformer.h"

namespace rempart::worker {

inline constexpr int64_t kPartBlocks = 48;

inline DeviceModelOptions Options(const ModelConfig& config, int64_t kv_heads) {
  DeviceModelOptions options;
  options.context_length = 128;
  options.max_step_tokens = 64;
  options.max_sequences = 4;
  options.reserve_bytes = 0;
  options.kv_bytes = kernels::DeviceKvBlockBytes(false, kv_heads, config.head_dim) *
                     static_cast<int64_t>(config.layers.size()) * kPartBlocks;
  return options;
}

// What one rank holds of a model of random weights.
struct Part {
  Part() : pool({.threads = 1}) {}
  ThreadPool pool;
  Weights weights;
  std::unique_ptr<DeviceTransformer> transformer;
};

inline absl::Status Load(const RandomModel& model, const RankPosition& of, Device& device,
                         Part& part) {
  auto bound = BindWeights(model.tensors(), model.config(), kernels::BestOps(), {.pack = false},
                           part.pool, of, MatrixCut::kPairs);
  if (!bound.ok()) return bound.status();
  part.weights = *std::move(bound);
  const int64_t kv_heads = part.weights.partition.kv_heads.count();
  auto made = DeviceTransformer::Create(device, model.config(), part.weights,
                                        Options(model.config(), kv_heads));
  if (!made.ok()) return made.status();
  part.transformer = *std::move(made);
  return absl::OkStatus();
}

// KV blocks of a sequence of 128 tokens, of six that share none.
inline std::vector<int32_t> Table(int sequence) {
  std::vector<int32_t> table(8);
  for (int i = 0; i < 8; ++i) table[i] = (sequence * 8 + i) * 5 % kPartBlocks;
  return table;
}

}  // namespace rempart::worker
