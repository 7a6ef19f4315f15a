// SPDX-License-Identifier: Apache-2.0
// Every family against transformers in F32, on small models with random weights:
// tests/goldens/families/NAME holds the model folder and what transformers computed with it.
#include "worker/model/families/families.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <simdjson.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "tests/worker/model/divergence.h"
#include "tests/worker/model/whole_model.h"

namespace rempart::worker {
namespace {

constexpr char kFolder[] = "tests/goldens/families/";
constexpr double kLogitDifference = 1e-3;
constexpr double kDivergence = 1e-3;

std::vector<int32_t> Ids(simdjson::dom::element element) {
  std::vector<int32_t> ids;
  for (int64_t id : element.get_array()) ids.push_back(static_cast<int32_t>(id));
  return ids;
}

// The numbers of a .npy file of F32 (its header is as long as bytes 8 and 9 say).
std::vector<float> ReadNpy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), {});
  const size_t start = 10 + static_cast<uint8_t>(bytes.at(8)) + 256 * uint8_t(bytes.at(9));
  EXPECT_NE(bytes.find("<f4"), std::string::npos);
  std::vector<float> values((bytes.size() - start) / sizeof(float));
  std::memcpy(values.data(), bytes.data() + start, values.size() * sizeof(float));
  return values;
}

std::vector<std::string> GoldenFamilies() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kFolder)) {
    if (std::filesystem::exists(entry.path() / "golden.json")) {
      names.push_back(entry.path().filename().string());
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

class Families : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    folder_ = kFolder + GetParam();
    golden_ = parser_.load(folder_ + "/golden.json");
    expected_ = ReadNpy(folder_ + "/logits_f32.npy");
  }

  std::string folder_;
  simdjson::dom::parser parser_;
  simdjson::dom::element golden_;
  std::vector<float> expected_;  // [logits_rows, vocabulary]
};

TEST_P(Families, LogitsAndGreedyIdsAreThoseOfTransformers) {
  WholeModel model(folder_, kernels::BestOps(), /*exact=*/true);
  ASSERT_TRUE(model.ok());
  const std::vector<int32_t> ids = Ids(golden_["input_ids"]);
  const std::vector<float> logits = model.Logits(ids);
  const size_t vocabulary = model.vocabulary();
  const std::vector<int32_t> rows = Ids(golden_["logits_rows"]);
  ASSERT_EQ(expected_.size(), rows.size() * vocabulary);
  double worst = 0;
  for (size_t i = 0; i < expected_.size(); ++i) {
    const float ours = logits[rows[i / vocabulary] * vocabulary + i % vocabulary];
    worst = std::max(worst, std::abs(double{ours} - expected_[i]));
  }
  EXPECT_LE(worst, kLogitDifference);
  std::printf("%s: largest difference of logits %.2e (%.0e allowed)\n", GetParam().c_str(), worst,
              kLogitDifference);

  const std::vector<int32_t> best = Ids(golden_["argmax"]);
  double log_likelihood = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    std::vector<float> row(&logits[i * vocabulary], &logits[i * vocabulary] + vocabulary);
    EXPECT_EQ(kernels::ReferenceOps().argmax(row.data(), row.size()), best[i]) << "position " << i;
    if (i + 1 == ids.size()) break;
    const double next = row[ids[i + 1]];
    log_likelihood += next - kernels::ReferenceOps().softmax(row.data(), row.size());
  }
  EXPECT_NEAR(log_likelihood, double(golden_["sum_logprob_next"]), 1e-2);

  const std::vector<int32_t> greedy = Ids(golden_["greedy_from_24"]);
  EXPECT_EQ(model.Greedy({ids.begin(), ids.begin() + 24}, greedy.size()), greedy);
}

TEST_P(Families, FastArithmeticKeepsTheDistribution) {
  WholeModel model(folder_, kernels::BestOps(), /*exact=*/false, 2, kernels::DType::kF16);
  ASSERT_TRUE(model.ok());
  const std::vector<float> logits = model.Logits(Ids(golden_["input_ids"]));
  const size_t vocabulary = model.vocabulary();
  const std::vector<int32_t> rows = Ids(golden_["logits_rows"]);
  double worst = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const double divergence = Divergence({&expected_[i * vocabulary], vocabulary},
                                         {&logits[rows[i] * vocabulary], vocabulary});
    EXPECT_LE(divergence, kDivergence);
    worst = std::max(worst, divergence);
  }
  std::printf("%s: largest KL of BF16 weights to transformers in F32 %.2e (%.0e allowed)\n",
              GetParam().c_str(), worst, kDivergence);
}

INSTANTIATE_TEST_SUITE_P(All, Families, ::testing::ValuesIn(GoldenFamilies()),
                         [](const auto& info) { return info.param; });

TEST(FamilyGoldens, AreAllThere) { EXPECT_GE(GoldenFamilies().size(), 8u); }

}  // namespace
}  // namespace rempart::worker
