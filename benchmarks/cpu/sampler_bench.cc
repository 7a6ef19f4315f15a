// SPDX-License-Identifier: Apache-2.0
// What drawing a token costs on the host: sampler_bench [TIER]. Microseconds, best of thirty, by
// vocabulary and parameters.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "worker/engine/sampler.h"

namespace rempart::worker {
namespace {

struct Case {
  const char* name;
  SamplingParams params;
};

const Case kCases[] = {
    {"greedy", {.temperature = 0}},
    {"greedy, logprobs", {.temperature = 0, .top_logprobs = 0}},
    {"greedy, 5 alternatives", {.temperature = 0, .top_logprobs = 5}},
    {"temperature 0.8", {.temperature = 0.8f}},
    {"and top-p 0.95", {.temperature = 0.8f, .top_p = 0.95f}},
    {"and top-k 40", {.temperature = 0.8f, .top_k = 40}},
    {"and both", {.temperature = 0.8f, .top_p = 0.95f, .top_k = 40}},
    {"and min-p 0.05", {.temperature = 0.8f, .min_p = 0.05f}},
};

// Twenty likely tokens before a wide field.
std::vector<float> Logits(size_t vocabulary) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 2.5f);
  std::vector<float> logits(vocabulary);
  for (float& logit : logits) logit = normal(random);
  for (size_t i = 0; i < 20; ++i) logits[37 * i] += 8.0f;
  return logits;
}

double Microseconds(const std::vector<float>& logits, const SamplingParams& params,
                    SamplerScratch& scratch) {
  double best = std::numeric_limits<double>::infinity();
  for (int64_t position = 0; position < 30; ++position) {
    std::vector<float> copy = logits;
    const auto begin = std::chrono::steady_clock::now();
    if (!Sample(absl::MakeSpan(copy), {&params, {}, position}, scratch).ok()) return best;
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begin;
    best = std::min(best, took.count());
  }
  return best;
}

int Main(int argc, char** argv) {
  SamplerScratch scratch;
  if (argc > 1) scratch.ops = kernels::FindOps(argv[1]);
  if (argc > 2 || scratch.ops == nullptr) {
    std::fprintf(stderr,
                 "usage: sampler_bench [TIER]; this processor lacks the tier, or there are "
                 "too many arguments\n");
    return 2;
  }
  for (const size_t vocabulary : {49'152, 262'144}) {
    const std::vector<float> logits = Logits(vocabulary);
    for (const Case& c : kCases) {
      std::printf("%-12s %7zu %-24s %8.1f us\n", scratch.ops->name, vocabulary, c.name,
                  Microseconds(logits, c.params, scratch));
    }
  }
  return 0;
}

}  // namespace
}  // namespace rempart::worker

int main(int argc, char** argv) { return rempart::worker::Main(argc, argv); }
