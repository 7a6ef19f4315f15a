// SPDX-License-Identifier: Apache-2.0
// The ranks of a group as threads of a test: a model computed by them is the model computed by one.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <memory>
#include <vector>

#include "tests/worker/comm/tcp_group.h"
#include "tests/worker/model/random_model.h"
#include "worker/comm/in_process.h"
#include "worker/model/transformer.h"

namespace rempart::worker {

inline constexpr int64_t kBlocks = 32;

inline TransformerOptions Options(bool exact) {
  TransformerOptions options;
  options.kv_blocks = kBlocks;
  options.max_step_tokens = 64;
  options.max_step_logits = 8;
  options.exact = exact;
  return options;
}

// One rank with its weights.
struct Rank {
  Rank(const TensorMap& tensors, const ModelConfig& config, const kernels::Ops& ops, bool exact,
       const RankPosition& of)
      : pool({.threads = of.group_size() == 1 ? 2 : 1}) {
    auto bound = BindWeights(tensors, config, ops, {.pack = !exact}, pool, of);
    if (!bound.ok()) {
      ADD_FAILURE() << bound.status();
      return;
    }
    weights = *std::move(bound);
    auto made = Transformer::Create(config, weights, ops, pool, Options(exact));
    if (made.ok()) transformer = *std::move(made);
  }
  ThreadPool pool;
  Weights weights;
  std::unique_ptr<Transformer> transformer;
};

struct Ids {
  std::vector<int32_t> tokens;
  int32_t first_position;
  std::vector<int32_t> table;
  bool wants_logits;
};
using Step = std::vector<Ids>;

// Prefill, cut prefill beside another sequence, decodes, and a step that wants nothing.
inline std::vector<Step> Steps(int64_t vocabulary) {
  const auto tokens = [&](int count, int seed) {
    std::vector<int32_t> ids;
    for (int i = 0; i < count; ++i) ids.push_back((seed + 37 * i) % static_cast<int>(vocabulary));
    return ids;
  };
  return {{{tokens(19, 3), 0, {5, 2}, true}},
          {{tokens(7, 11), 0, {9}, false}, {tokens(1, 8), 19, {5, 2}, true}},
          {{tokens(20, 5), 7, {9, 1}, false}},
          {{tokens(1, 1), 27, {9, 1}, true},
           {tokens(1, 2), 20, {5, 2}, true},
           {tokens(33, 9), 0, {3, 4, 6}, true}}};
}

inline StepBatch BatchOf(const Step& step) {
  StepBatch batch;
  for (const Ids& ids : step) {
    batch.slices.push_back({ids.tokens, ids.first_position, ids.table, ids.wants_logits});
  }
  return batch;
}

// Logits of all steps, one after the other.
inline std::vector<float> Compute(Transformer& transformer, const std::vector<Step>& steps,
                                  int rank, int32_t micro_batch_tokens = 0) {
  std::vector<float> all;
  for (const Step& step : steps) {
    StepBatch batch = BatchOf(step);
    batch.micro_batch_tokens = micro_batch_tokens;
    int64_t wanting = 0;
    for (const SequenceSlice& slice : batch.slices) wanting += slice.wants_logits ? 1 : 0;
    std::vector<float> logits(rank == 0 ? wanting * transformer.config().vocabulary : 0);
    const absl::Status status = transformer.Forward(batch, absl::MakeSpan(logits));
    EXPECT_TRUE(status.ok()) << status;
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

struct Transport {
  const char* name;
  std::function<Group(int)> make;
};

inline const std::vector<Transport>& Transports() {
  static const auto* transports = new std::vector<Transport>{
      {"in process", [](int size) { return CreateInProcess(size, {}); }},
      {"plain TCP", [](int size) { return MakeTcpGroup(size, 1, LinkProtection::kPlain, {}); }},
      {"encrypted TCP",
       [](int size) { return MakeTcpGroup(size, 1, LinkProtection::kEncrypted, {}); }}};
  return *transports;
}

struct GroupShape {
  int tensor = 1;
  int stages = 1;
  int32_t micro_batch_tokens = 0;
};

inline std::vector<std::unique_ptr<Rank>> MakeRanks(const TensorMap& tensors,
                                                    const ModelConfig& config, bool exact,
                                                    const GroupShape& shape) {
  std::vector<std::unique_ptr<Rank>> ranks;
  for (int rank = 0; rank < shape.tensor * shape.stages; ++rank) {
    ranks.push_back(std::make_unique<Rank>(tensors, config, kernels::BestOps(), exact,
                                           PositionOf(rank, shape.tensor, shape.stages)));
  }
  return ranks;
}

inline void ExpectSameOnAllShapes(const TensorMap& tensors, const ModelConfig& config,
                                  const std::vector<GroupShape>& shapes) {
  const std::vector<Step> steps = Steps(config.vocabulary);
  for (const bool exact : {true, false}) {
    Rank alone(tensors, config, kernels::BestOps(), exact, {});
    ASSERT_NE(alone.transformer, nullptr);
    const std::vector<float> expected = Compute(*alone.transformer, steps, 0);
    ASSERT_EQ(expected.size(), 5 * static_cast<size_t>(config.vocabulary));
    for (const float logit : expected) ASSERT_TRUE(std::isfinite(logit));
    for (const GroupShape& shape : shapes) {
      const auto ranks = MakeRanks(tensors, config, exact, shape);
      for (const auto& rank : ranks) ASSERT_NE(rank->transformer, nullptr);
      for (const Transport& transport : Transports()) {
        Group group = transport.make(static_cast<int>(ranks.size()));
        std::vector<float> logits;
        OnAllRanks(group, [&](Communicator& communicator) {
          const int rank = communicator.rank();
          Transformer& transformer = *ranks[rank]->transformer;
          transformer.SetCommunicator(&communicator);
          std::vector<float> own = Compute(transformer, steps, rank, shape.micro_batch_tokens);
          if (rank == 0) logits = std::move(own);
        });
        EXPECT_EQ(logits, expected)
            << shape.tensor << " ranks in each of " << shape.stages << " stages, micro-batches of "
            << shape.micro_batch_tokens << ", " << transport.name << (exact ? ", exact" : ", fast");
      }
    }
  }
}

}  // namespace rempart::worker
