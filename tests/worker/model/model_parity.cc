// SPDX-License-Identifier: Apache-2.0
// The real models against transformers in F32 (top-1 and log-sum-exp of every position) and against
// llama.cpp's greedy choices, teacher-forced. REMPART_TEST_MODELS names the folder of the models.
#include <gtest/gtest.h>
#include <simdjson.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "tests/worker/model/whole_model.h"

namespace rempart::worker {
namespace {

std::vector<int32_t> Ids(simdjson::dom::element element) {
  std::vector<int32_t> ids;
  for (int64_t id : element.get_array()) ids.push_back(static_cast<int32_t>(id));
  return ids;
}

struct Agreement {
  int64_t positions = 0;
  int64_t same = 0;            // top-1 as transformers
  double worst_logsumexp = 0;  // absolute difference
  int64_t greedy_positions = 0;
  int64_t greedy_same = 0;    // top-1 as llama.cpp's continuation
  double log_likelihood = 0;  // of the continuations
  double top_share() const { return 100.0 * same / positions; }
  double greedy_share() const { return 100.0 * greedy_same / greedy_positions; }
  double perplexity() const { return std::exp(-log_likelihood / greedy_positions); }
};

Agreement Compare(const std::string& name, bool exact) {
  const std::string folder = std::getenv("REMPART_TEST_MODELS");
  WholeModel model(folder + "/" + name + ".gguf", kernels::BestOps(), exact);
  Agreement agreement;
  if (!model.ok()) return agreement;
  simdjson::dom::parser parser;
  simdjson::dom::element goldens =
      parser.load("tests/goldens/models/" + name + ".transformers_f32.json");
  for (auto item : goldens["cases"].get_array()) {
    const std::vector<int32_t> ids = Ids(item["ids"]);
    const std::vector<int32_t> best = Ids(item["argmax"]);
    const int64_t prompt = int64_t(item["prompt_len"]);
    const std::vector<float> logits = model.Logits(ids);
    std::vector<float> row(model.vocabulary());
    for (size_t i = 0; i < ids.size(); ++i) {
      std::copy_n(logits.begin() + i * row.size(), row.size(), row.begin());
      const int64_t top = kernels::BestOps().argmax(row.data(), row.size());
      const double raw_next = i + 1 < ids.size() ? row[ids[i + 1]] : 0;
      const double logsumexp = kernels::BestOps().softmax(row.data(), row.size());
      const double expected = double(item["logsumexp"].at(i));
      ++agreement.positions;
      agreement.same += top == best[i] ? 1 : 0;
      agreement.worst_logsumexp =
          std::max(agreement.worst_logsumexp, std::abs(logsumexp - expected));
      if (static_cast<int64_t>(i) + 1 < prompt || i + 1 >= ids.size()) continue;
      ++agreement.greedy_positions;
      agreement.greedy_same += top == ids[i + 1] ? 1 : 0;
      agreement.log_likelihood += raw_next - logsumexp;
    }
  }
  std::printf(
      "%s %s: %ld positions, top-1 %.2f %%, worst log-sum-exp difference %.2g, llama.cpp's greedy "
      "choice %.2f %% of %ld, perplexity %.4f\n",
      name.c_str(), exact ? "exact" : "fast", static_cast<long>(agreement.positions),
      agreement.top_share(), agreement.worst_logsumexp, agreement.greedy_share(),
      static_cast<long>(agreement.greedy_positions), agreement.perplexity());
  return agreement;
}

// Share of llama.cpp's greedy tokens, over all its prompts, that this model would choose as well
// after the same tokens.
double GreedyShare(const std::string& name) {
  const std::string folder = std::getenv("REMPART_TEST_MODELS");
  WholeModel model(folder + "/" + name + ".gguf", kernels::BestOps(), /*exact=*/true);
  if (!model.ok()) return 0;
  simdjson::dom::parser parser;
  simdjson::dom::element goldens = parser.load("tests/goldens/text/" + name + ".json");
  int64_t positions = 0;
  int64_t same = 0;
  for (auto item : goldens["prompts"].get_array()) {
    std::vector<int32_t> ids = Ids(item["prompt_ids"]);
    const size_t prompt = ids.size();
    const std::vector<int32_t> greedy = Ids(item["greedy_ids"]);
    ids.insert(ids.end(), greedy.begin(), greedy.end() - 1);
    const std::vector<float> logits = model.Logits(ids, prompt - 1);
    for (size_t i = 0; i < greedy.size(); ++i) {
      const float* row = logits.data() + i * model.vocabulary();
      ++positions;
      same += kernels::BestOps().argmax(row, model.vocabulary()) == greedy[i] ? 1 : 0;
    }
  }
  const double share = 100.0 * same / positions;
  std::printf("%s exact: llama.cpp's greedy choice %.2f %% of %ld\n", name.c_str(), share,
              static_cast<long>(positions));
  EXPECT_EQ(positions, 32 * 64);
  return share;
}

class ModelParity : public ::testing::TestWithParam<const char*> {};

TEST_P(ModelParity, ExactIsTheF32ModelAndFastIsClose) {
  const Agreement exact = Compare(GetParam(), true);
  ASSERT_GT(exact.positions, 700);
  EXPECT_GE(exact.top_share(), 99.5);
  EXPECT_LE(exact.worst_logsumexp, 1e-3);
  const Agreement fast = Compare(GetParam(), false);
  EXPECT_GE(fast.top_share(), 96.0);
  EXPECT_NEAR(fast.perplexity() / exact.perplexity(), 1.0, 0.005);
}

TEST_P(ModelParity, ChoosesAsLlamaCppDoes) { EXPECT_GE(GreedyShare(GetParam()), 95.5); }

INSTANTIATE_TEST_SUITE_P(Models, ModelParity,
                         ::testing::Values("smollm2-135m-instruct-q4_1", "gemma3-270m-q4_k_m"));

}  // namespace
}  // namespace rempart::worker
