// SPDX-License-Identifier: Apache-2.0
// Decoders as a CPU serves them: packed weights of every storage type, int8 activations, and the KV
// cache in each type that it may have, over every tier of this machine. What a sequence computes is
// the same bits in any company and however it is cut, and a smaller KV cache keeps the
// distribution.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <numeric>
#include <ostream>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "tests/worker/model/divergence.h"
#include "tests/worker/model/mixed_model.h"
#include "worker/model/transformer.h"

namespace rempart::worker {
namespace {

using kernels::DType;

constexpr int64_t kBlocks = 64;
// More than one chunk of attention's keys, and than one block of a product's tokens.
constexpr size_t kTokens = 150;
constexpr size_t kOwnBlocks = (kTokens + kernels::kKvBlockTokens - 1) / kernels::kKvBlockTokens;

struct Served {
  const kernels::Ops* ops;
  MixedModelSpec spec;
  std::vector<DType> kv_types;
};

void PrintTo(const Served& served, std::ostream* out) {
  *out << served.spec.name << " on " << served.ops->name;
}

std::vector<MixedModelSpec> Specs() {
  std::vector<MixedModelSpec> specs = MixedModelSpecs();
  MixedModelSpec nonlinear = specs.back();  // whose embedding alone is IQ4_NL
  nonlinear.name = "nonlinear";
  nonlinear.query_type = nonlinear.value_type = nonlinear.gate_type = nonlinear.down_type =
      DType::kIQ4_NL;
  specs.push_back(nonlinear);
  return specs;
}

// The portable tier is some twenty times slower: each model has one of the KV types there.
std::vector<Served> AllServed() {
  const std::vector<DType> kv_types = {DType::kF16, DType::kBF16, DType::kQ8_0, DType::kF32};
  std::vector<Served> all;
  for (const kernels::OpsTier& tier : kernels::AllOps()) {
    if (!tier.is_supported || tier.is_twin || tier.ops == &kernels::ReferenceOps()) continue;
    const bool is_slow = tier.ops == kernels::FindOps("baseline");
    for (const MixedModelSpec& spec : Specs()) {
      const DType one = kv_types[all.size() % kv_types.size()];
      all.push_back({tier.ops, spec, is_slow ? std::vector<DType>{one} : kv_types});
    }
  }
  return all;
}

std::vector<Served> ServedByTheBestTier() {
  std::vector<Served> all;
  for (const MixedModelSpec& spec : Specs()) {
    all.push_back({&kernels::BestOps(), spec, {DType::kF16, DType::kBF16, DType::kQ8_0}});
  }
  return all;
}

std::string NameOf(const ::testing::TestParamInfo<Served>& info) {
  return std::string(info.param.ops->name) + "_" + info.param.spec.name;
}

class ServedWeights : public ::testing::TestWithParam<Served> {
 protected:
  void SetUp() override {
    const absl::Status packed = model_.Pack(*GetParam().ops, pool_);
    ASSERT_TRUE(packed.ok()) << packed;
  }
  std::unique_ptr<Transformer> Make(DType kv_type, bool exact = false) {
    TransformerOptions options;
    options.kv_blocks = kBlocks;
    options.kv_type = kv_type;
    options.exact = exact;
    auto made =
        Transformer::Create(model_.config(), model_.weights(), *GetParam().ops, pool_, options);
    EXPECT_TRUE(made.ok()) << made.status();
    return std::move(*made);
  }
  size_t Below(size_t bound) { return random_() % bound; }
  std::vector<int32_t> RandomIds(size_t count) {
    std::vector<int32_t> ids(count);
    for (int32_t& id : ids) id = static_cast<int32_t>(Below(vocabulary()));
    return ids;
  }
  size_t vocabulary() const { return static_cast<size_t>(model_.config().vocabulary); }

  // Of the last token, computed in one step.
  std::vector<float> Alone(Transformer& transformer, const std::vector<int32_t>& ids) {
    std::vector<int32_t> table(kOwnBlocks);
    std::iota(table.begin(), table.end(), 0);
    std::vector<float> logits(vocabulary());
    StepBatch batch;
    batch.slices.push_back({ids, 0, table, true});
    EXPECT_TRUE(transformer.Forward(batch, absl::MakeSpan(logits)).ok());
    return logits;
  }
  // Of the last token, computed in steps of which the longest has about `longest_cut` tokens, each
  // beside up to `most_strangers` other sequences, in blocks that lie anywhere.
  std::vector<float> InCompany(Transformer& transformer, const std::vector<int32_t>& ids,
                               size_t longest_cut, size_t most_strangers) {
    constexpr size_t kStrangerBlocks = 3;
    std::vector<int32_t> table(kBlocks);
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), random_);
    const absl::Span<const int32_t> all(ids), blocks(table);
    std::vector<float> logits((most_strangers + 1) * vocabulary());
    size_t strangers = 0;
    for (size_t begin = 0, end = 0; begin < ids.size(); begin = end) {
      end = std::min(ids.size(), begin + 1 + Below(longest_cut));
      strangers = Below(most_strangers + 1);
      std::vector<std::vector<int32_t>> others(strangers);
      StepBatch batch;
      for (size_t i = 0; i < strangers; ++i) {
        others[i] = RandomIds(1 + Below(longest_cut < 4 ? 1 : 48));
        batch.slices.push_back({others[i], 0,
                                blocks.subspan(kOwnBlocks + i * kStrangerBlocks, kStrangerBlocks),
                                true});
      }
      batch.slices.push_back({all.subspan(begin, end - begin), static_cast<int32_t>(begin),
                              blocks.subspan(0, kOwnBlocks), end == ids.size()});
      const absl::Status status = transformer.Forward(batch, absl::MakeSpan(logits));
      EXPECT_TRUE(status.ok()) << status;
    }
    const auto last = logits.begin() + static_cast<int64_t>(strangers * vocabulary());
    return {last, last + static_cast<int64_t>(vocabulary())};
  }
  // After each of `ids`, as if it were decoded.
  std::vector<float> LogitsOfAll(Transformer& transformer, const std::vector<int32_t>& ids) {
    constexpr size_t kStep = 50;
    const absl::Span<const int32_t> all(ids);
    std::vector<int32_t> table(kOwnBlocks);
    std::iota(table.begin(), table.end(), 0);
    std::vector<float> logits(ids.size() * vocabulary());
    for (size_t begin = 0; begin < ids.size(); begin += kStep) {
      StepBatch batch;
      for (size_t i = begin; i < std::min(ids.size(), begin + kStep); ++i) {
        batch.slices.push_back({all.subspan(i, 1), static_cast<int32_t>(i), table, true});
      }
      const absl::Status status =
          transformer.Forward(batch, absl::MakeSpan(logits).subspan(begin * vocabulary()));
      EXPECT_TRUE(status.ok()) << status;
    }
    return logits;
  }

  static constexpr uint32_t kSeed = 20266;
  std::mt19937 random_{kSeed};
  ThreadPool pool_{{.threads = 2}};
  MixedModel model_{GetParam().spec};
};

INSTANTIATE_TEST_SUITE_P(Tiers, ServedWeights, ::testing::ValuesIn(AllServed()), NameOf);

TEST_P(ServedWeights, LogitsDoNotDependOnTheBatchNorOnTheCut) {
  for (const DType kv_type : GetParam().kv_types) {
    const std::unique_ptr<Transformer> transformer = Make(kv_type);
    const std::vector<int32_t> ids = RandomIds(kTokens);
    const std::vector<float> alone = Alone(*transformer, ids);
    for (const float logit : alone) ASSERT_TRUE(std::isfinite(logit));
    // Prefill in company, prefill in a crowd, a token or two at a time as they are decoded.
    for (const auto& [longest_cut, most_strangers] :
         std::vector<std::pair<size_t, size_t>>{{120, 1}, {40, 4}, {24, 2}, {2, 2}, {1, 0}}) {
      ASSERT_EQ(InCompany(*transformer, ids, longest_cut, most_strangers), alone)
          << "KV in " << kernels::DTypeName(kv_type) << ", cuts of up to " << longest_cut
          << ", up to " << most_strangers << " strangers, seed " << kSeed;
    }
  }
}

class KvTypes : public ServedWeights {
 protected:
  // Of logits after each token from those that F32 KV gives, in nats.
  struct Cost {
    double mean = 0, worst = 0;
  };
  Cost CostOf(DType kv_type, bool exact, const std::vector<int32_t>& ids,
              const std::vector<float>& expected) {
    const std::vector<float> actual = LogitsOfAll(*Make(kv_type, exact), ids);
    EXPECT_NE(actual, expected) << "nothing was rounded to " << kernels::DTypeName(kv_type);
    Cost cost;
    for (size_t at = 0; at < expected.size(); at += vocabulary()) {
      const double divergence =
          Divergence({&expected[at], vocabulary()}, {&actual[at], vocabulary()});
      cost.mean += divergence / kTokens;
      cost.worst = std::max(cost.worst, divergence);
    }
    std::printf("KV in %s%s: divergence from F32 %.1e, at worst %.1e\n",
                kernels::DTypeName(kv_type), exact ? ", exact" : "", cost.mean, cost.worst);
    return cost;
  }
};

INSTANTIATE_TEST_SUITE_P(BestTier, KvTypes, ::testing::ValuesIn(ServedByTheBestTier()), NameOf);

// Without int8 activations nothing but the cache is rounded: to 11 bits, 8 bits, and 7 bits of the
// largest value of a head. With them a value on the brink of another code falls to the other side
// whatever the type, which costs more than the cache.
TEST_P(KvTypes, KeepTheDistribution) {
  const std::vector<int32_t> ids = RandomIds(kTokens);
  const std::vector<float> exact = LogitsOfAll(*Make(DType::kF32, true), ids);
  const Cost f16 = CostOf(DType::kF16, true, ids, exact);
  const Cost bf16 = CostOf(DType::kBF16, true, ids, exact);
  const Cost q8 = CostOf(DType::kQ8_0, true, ids, exact);
  EXPECT_LE(f16.mean, 2e-7);
  EXPECT_LE(f16.worst, 1e-6);
  EXPECT_LE(bf16.mean, 1e-5);
  EXPECT_LE(bf16.worst, 5e-5);
  EXPECT_LE(q8.mean, 1e-4);
  EXPECT_LE(q8.worst, 1e-3);
  EXPECT_LT(10 * f16.mean, bf16.mean) << "three bits more";
  EXPECT_LT(bf16.mean, q8.mean);

  const std::vector<float> served = LogitsOfAll(*Make(DType::kF32), ids);
  for (const DType kv_type : GetParam().kv_types) {
    const Cost cost = CostOf(kv_type, false, ids, served);
    EXPECT_LE(cost.mean, 1e-3) << kernels::DTypeName(kv_type);
    EXPECT_LE(cost.worst, 2e-3) << kernels::DTypeName(kv_type);
  }
}

TEST(ServedWeightsSpecs, HaveMatricesOfEveryType) {
  std::set<DType> types;
  for (const MixedModelSpec& spec : Specs()) {
    types.insert({spec.query_type, spec.value_type, spec.gate_type, spec.down_type});
  }
  EXPECT_EQ(types.size(), static_cast<size_t>(kernels::kDTypeCount));
}

}  // namespace
}  // namespace rempart::worker
