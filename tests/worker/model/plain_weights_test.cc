// SPDX-License-Identifier: Apache-2.0
// Decoders with F32, F16 and BF16 weights in the fast arithmetic, over every tier of this machine:
// what a sequence computes is the same bits in any company and however it is cut, and where
// activations are rounded (BF16) the distribution stays that of F32 arithmetic.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "tests/worker/model/divergence.h"
#include "tests/worker/model/mixed_model.h"
#include "worker/model/transformer.h"

namespace rempart::worker {
namespace {

using kernels::DType;

constexpr int64_t kBlocks = 64;

struct Tier {
  const kernels::Ops* ops;
  DType type;
};

std::vector<Tier> Tiers() {
  std::vector<Tier> tiers;
  for (const kernels::OpsTier& tier : kernels::AllOps()) {
    if (!tier.is_supported || tier.is_twin || tier.ops == &kernels::ReferenceOps()) continue;
    for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
      tiers.push_back({tier.ops, type});
    }
  }
  return tiers;
}

MixedModelSpec SpecOf(DType type) {
  MixedModelSpec spec = MixedModelSpecs().front();
  spec.query_type = spec.value_type = spec.gate_type = spec.down_type = spec.embedding_type = type;
  return spec;
}

class PlainWeights : public ::testing::TestWithParam<Tier> {
 protected:
  std::unique_ptr<Transformer> Make(bool exact) {
    TransformerOptions options;
    options.kv_blocks = kBlocks;
    options.kv_type = DType::kF32;
    options.exact = exact;
    auto made =
        Transformer::Create(model_.config(), model_.weights(), *GetParam().ops, pool_, options);
    EXPECT_TRUE(made.ok()) << made.status();
    return std::move(*made);
  }
  std::vector<int32_t> RandomIds(size_t count) {
    std::vector<int32_t> ids(count);
    for (int32_t& id : ids) id = static_cast<int32_t>(random_() % model_.config().vocabulary);
    return ids;
  }
  size_t vocabulary() const { return static_cast<size_t>(model_.config().vocabulary); }

  static constexpr uint32_t kSeed = 20264;
  std::mt19937 random_{kSeed};
  MixedModel model_{SpecOf(GetParam().type)};
  ThreadPool pool_{{.threads = 2}};
};

INSTANTIATE_TEST_SUITE_P(Tiers, PlainWeights, ::testing::ValuesIn(Tiers()), [](const auto& info) {
  return std::string(info.param.ops->name) + "_" + kernels::DTypeName(info.param.type);
});

// Random cuts of one sequence, each step in the company of up to 33 tokens of strangers.
TEST_P(PlainWeights, LogitsDoNotDependOnTheBatchNorOnTheCut) {
  const std::unique_ptr<Transformer> transformer = Make(/*exact=*/false);
  const std::vector<int32_t> ids = RandomIds(61);
  const absl::Span<const int32_t> all(ids);
  std::vector<int32_t> table(kBlocks);
  std::iota(table.begin(), table.end(), 0);
  std::vector<float> alone(vocabulary());
  StepBatch whole;
  whole.slices.push_back({all, 0, table, true});
  ASSERT_TRUE(transformer->Forward(whole, absl::MakeSpan(alone)).ok());
  for (int round = 0; round < 8; ++round) {
    std::shuffle(table.begin(), table.end(), random_);
    const absl::Span<const int32_t> own = absl::MakeConstSpan(table).subspan(0, 8);
    std::vector<float> logits(2 * vocabulary());
    for (size_t begin = 0, end = 0; begin < ids.size(); begin = end) {
      end = std::min(ids.size(), begin + 1 + random_() % 24);
      const std::vector<int32_t> strangers = RandomIds(1 + random_() % 33);
      StepBatch batch;
      batch.slices.push_back({strangers, 0, absl::MakeConstSpan(table).subspan(8, 8), true});
      batch.slices.push_back(
          {all.subspan(begin, end - begin), static_cast<int32_t>(begin), own, end == ids.size()});
      ASSERT_TRUE(transformer->Forward(batch, absl::MakeSpan(logits)).ok());
    }
    const std::vector<float> last(logits.begin() + static_cast<int64_t>(vocabulary()),
                                  logits.end());
    ASSERT_EQ(last, alone) << "round " << round << " of seed " << kSeed;
  }
}

TEST_P(PlainWeights, FastArithmeticKeepsTheDistribution) {
  constexpr double kLimit = 1e-3;
  const std::unique_ptr<Transformer> exact = Make(true), fast = Make(false);
  const std::vector<int32_t> ids = RandomIds(60);
  const absl::Span<const int32_t> all(ids);
  std::vector<int32_t> table(kBlocks);
  std::iota(table.begin(), table.end(), 0);
  StepBatch batch;
  for (size_t i = 0; i < ids.size(); ++i) {
    batch.slices.push_back({all.subspan(i, 1), static_cast<int32_t>(i), table, true});
  }
  std::vector<float> expected(ids.size() * vocabulary()), actual(expected.size());
  ASSERT_TRUE(exact->Forward(batch, absl::MakeSpan(expected)).ok());
  ASSERT_TRUE(fast->Forward(batch, absl::MakeSpan(actual)).ok());
  double worst = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    const size_t at = i * vocabulary();
    worst = std::max(worst, Divergence({&expected[at], vocabulary()}, {&actual[at], vocabulary()}));
  }
  EXPECT_LE(worst, kLimit);
  std::printf("%s %s: worst divergence %.1e, tolerance %.1e\n", GetParam().ops->name,
              kernels::DTypeName(GetParam().type), worst, kLimit);
  // Nothing but BF16 is rounded: F32 and F16 weights meet F32 activations either way.
  if (GetParam().type == DType::kBF16) {
    EXPECT_NE(actual, expected);
  } else {
    EXPECT_EQ(actual, expected);
  }
}

}  // namespace
}  // namespace rempart::worker
