// SPDX-License-Identifier: Apache-2.0
// Sampling against the plain definition: sort, cut, draw in the order of ids; sums in double. And
// against the engine's sampler, bit for bit: who draws must make no difference.
#include <algorithm>
#include <map>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "benchmarks/gpu/conformance/harness.h"
#include "kernels/cuda/layout.h"
#include "kernels/sample_math.h"
#include "worker/engine/sampler.h"

namespace rempart::benchmarks {
namespace {

using kernels::cuda::LogitOffset;

struct RowInput {
  kernels::DeviceSampling params;
  std::map<int32_t, float> bias, counts;
  std::vector<uint32_t> mask;
  std::vector<float> logits;
  int32_t unlisted = -1;  // generated once more
};

struct Expected {
  int32_t token = -1;  // -2: the mask allows none that is possible
  float logprob = 0;
};

// A mask of one kind or another: any tokens, few, whole words of them, one, none.
std::vector<uint32_t> RandomMask(std::mt19937& random, int64_t vocabulary) {
  std::vector<uint32_t> mask(static_cast<size_t>(worker::MaskWords(vocabulary)), 0);
  const auto allow = [&](int64_t id) { mask[id / 32] |= 1u << (id % 32); };
  const uint32_t kind = random() % 6;
  for (uint32_t& word : mask) {
    if (kind == 0) word = static_cast<uint32_t>(random() & random());
    if (kind == 1) word = static_cast<uint32_t>(random() | random());
    if (kind == 2) word = random() % 2 == 0 ? 0u : ~0u;  // with bits behind the vocabulary
  }
  for (int i = 0; kind == 3 && i < 5; ++i) allow(random() % vocabulary);
  if (kind == 4) allow(vocabulary - 1);
  return mask;
}

// Tokens by logit, then id; only those that a filter keeps.
std::vector<int32_t> Kept(const std::vector<double>& logits, const kernels::DeviceSampling& params,
                          const std::vector<double>& weights) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  if (params.top_k > 0) order.resize(std::min<size_t>(order.size(), params.top_k));
  if (params.top_p < 1.0f) {
    double total = 0, sum = 0;
    for (const int32_t id : order) total += weights[id];
    size_t kept = 0;
    while (kept < order.size() && sum < params.top_p * total) sum += weights[order[kept++]];
    order.resize(std::max<size_t>(kept, 1));
  }
  std::erase_if(order, [&](int32_t id) { return weights[id] < params.min_p; });
  std::sort(order.begin(), order.end());
  return order;
}

Expected Sampled(const RowInput& row) {
  std::vector<double> logits(row.logits.begin(), row.logits.end());
  double sum = 0;
  const double top = *std::max_element(logits.begin(), logits.end());
  for (const double logit : logits) sum += std::exp(logit - top);
  const double norm = top + std::log(sum);
  for (const auto& [id, bias] : row.bias) logits[id] = static_cast<float>(logits[id]) + bias;
  for (const auto& [id, count] : row.counts) {
    double& logit = logits[id];
    logit =
        logit > 0 ? logit / row.params.repetition_penalty : logit * row.params.repetition_penalty;
    if (count > 0) {
      logit -= row.params.frequency_penalty * count + row.params.presence_penalty;
    }
    logit = static_cast<float>(logit);
  }
  for (size_t id = 0; id < logits.size(); ++id) {
    if (!row.mask.empty() && !(row.mask[id / 32] >> (id % 32) & 1)) logits[id] = -INFINITY;
  }
  const auto best =
      static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  Expected expected;
  if (row.params.keeps_logits) return expected;
  if (!std::isfinite(logits[best])) return {row.mask.empty() ? -1 : -2};
  expected.token = best;
  if (row.params.temperature > 0.0f) {
    std::vector<double> weights;
    for (const double logit : logits) {
      weights.push_back(std::exp((logit - logits[best]) / row.params.temperature));
    }
    const std::vector<int32_t> kept = Kept(logits, row.params, weights);
    double total = 0, walked = 0;
    for (const int32_t id : kept) total += weights[id];
    const double target = kernels::UniformOf(row.params.seed, row.params.position) * total;
    for (const int32_t id : kept) {
      walked += weights[id];
      if (weights[id] > 0) expected.token = id;
      if (walked > target) break;
    }
  }
  expected.logprob = static_cast<float>(row.logits[expected.token] - norm);
  return expected;
}

// Rows that use every parameter, alone and together.
std::vector<RowInput> MakeRows(std::mt19937& random, int64_t vocabulary) {
  std::vector<RowInput> rows;
  const auto add = [&](float temperature, int32_t top_k, float top_p, float min_p) -> RowInput& {
    RowInput row;
    row.logits = RandomFloats(random, vocabulary, 3.0f);
    row.params.temperature = temperature;
    row.params.top_k = top_k;
    row.params.top_p = top_p;
    row.params.min_p = min_p;
    row.params.seed = random();
    row.params.position = rows.size();
    row.params.wants_logprob = true;
    rows.push_back(std::move(row));
    return rows.back();
  };
  const auto occurred = [&](RowInput& row) {
    for (int i = 0; i < 40; ++i) {
      row.counts[static_cast<int32_t>(random() % vocabulary)] = static_cast<float>(i % 3);
    }
    row.params.repetition_penalty = 1.3f;
    row.params.frequency_penalty = 0.4f;
    row.params.presence_penalty = 0.2f;
  };
  const auto masked = [&](RowInput& row) {
    row.mask.resize((vocabulary + 31) / 32);
    for (uint32_t& word : row.mask) word = static_cast<uint32_t>(random() & random());
  };
  add(0.0f, 0, 1.0f, 0.0f);
  for (int i = 0; i < 4; ++i) {
    add(1.0f, 0, 1.0f, 0.0f);
    add(0.7f, 5, 1.0f, 0.0f);
    add(1.5f, 0, 0.6f, 0.0f);
    add(1.0f, 0, 1.0f, 0.1f);
    add(1.2f, 50, 0.9f, 0.02f);
  }
  // Equal logits: the lower id is the better one.
  RowInput& ties = add(0.0f, 0, 1.0f, 0.0f);
  ties.logits.assign(vocabulary, -1.25f);
  RowInput& cut_ties = add(1.0f, 7, 1.0f, 0.0f);
  cut_ties.logits.assign(vocabulary, 0.5f);
  RowInput& nucleus_of_ties = add(1.0f, 0, 0.011f, 0.0f);
  nucleus_of_ties.logits.assign(vocabulary, 0.0f);
  RowInput& biased = add(0.0f, 0, 1.0f, 0.0f);
  biased.bias = {{3, 100.0f}, {17, -50.0f}};
  occurred(add(0.0f, 0, 1.0f, 0.0f));
  occurred(add(0.9f, 20, 0.95f, 0.0f));
  masked(add(0.0f, 0, 1.0f, 0.0f));
  RowInput& all = add(0.8f, 30, 0.9f, 0.01f);
  occurred(all);
  masked(all);
  all.bias = {{1, 2.0f}, {2, -1.0f}, {all.counts.begin()->first, 0.5f}};
  RowInput& nothing = add(1.0f, 0, 1.0f, 0.0f);  // the mask allows no token
  nothing.mask.assign((vocabulary + 31) / 32, 0);
  RowInput& kept = add(1.0f, 0, 1.0f, 0.0f);
  kept.bias = {{3, 1.0f}};
  kept.params.keeps_logits = true;
  RowInput& broken = add(0.0f, 0, 1.0f, 0.0f);
  broken.logits[vocabulary / 2] = NAN;
  return rows;
}

// Rows of anything: few values and many, zeros of both signs, tokens that are impossible, far
// outliers.
std::vector<RowInput> MakeRandomRows(std::mt19937& random, int64_t vocabulary, int count) {
  const auto one_in = [&](uint32_t n) { return random() % n == 0; };
  const auto between = [&](float low, float high) {
    return low + (high - low) * static_cast<float>(random() % 1025) / 1024.0f;
  };
  std::vector<RowInput> rows(static_cast<size_t>(count));
  for (RowInput& row : rows) {
    row.logits = RandomFloats(random, vocabulary, between(0.1f, 20.0f));
    const bool is_coarse = one_in(3);
    for (float& logit : row.logits) {
      if (is_coarse) logit = std::round(logit);  // -0 too
      if (one_in(50)) logit = -INFINITY;
    }
    if (one_in(4)) row.logits[random() % row.logits.size()] = 60.0f;
    if (one_in(2)) row.mask = RandomMask(random, vocabulary);
    // Whether a mask hides it or not.
    if (one_in(6)) row.logits[random() % row.logits.size()] = one_in(2) ? NAN : INFINITY;
    kernels::DeviceSampling& params = row.params;
    params.temperature = one_in(5) ? 0.0f : between(0.05f, 2.0f);
    if (one_in(2)) params.top_k = static_cast<int32_t>(1 + random() % (vocabulary + 10));
    if (one_in(3)) params.top_k = static_cast<int32_t>(1 + random() % 50);
    if (one_in(2)) params.top_p = between(0.01f, 1.0f);
    if (one_in(3)) params.min_p = between(0.0f, 0.3f);
    params.seed = random();
    params.position = random();
    params.wants_logprob = !one_in(3);
    for (uint32_t i = one_in(3) ? random() % 30 : 0; i > 0; --i) {
      row.bias[static_cast<int32_t>(random() % vocabulary)] = between(-20.0f, 20.0f);
    }
    if (one_in(2)) continue;
    for (uint32_t i = random() % 200; i > 0; --i) {
      row.counts[static_cast<int32_t>(random() % vocabulary)] = static_cast<float>(random() % 4);
    }
    params.repetition_penalty = between(0.5f, 2.0f);
    params.frequency_penalty = between(-2.0f, 2.0f);
    params.presence_penalty = between(-2.0f, 2.0f);
    if (one_in(3)) continue;
    // In the counts, among the biases, anywhere.
    row.unlisted = static_cast<int32_t>(random() % vocabulary);
    if (!row.counts.empty() && one_in(2)) row.unlisted = row.counts.begin()->first;
    if (!row.bias.empty() && one_in(2)) row.unlisted = row.bias.begin()->first;
    if (one_in(4)) row.logits[row.unlisted] = 40.0f;
  }
  return rows;
}

// What the engine's sampler makes of a row; -1 or -2 where it fails.
Expected OfTheEngine(const RowInput& row) {
  worker::SamplingParams params;
  params.temperature = row.params.temperature;
  params.top_p = row.params.top_p;
  params.top_k = row.params.top_k;
  params.min_p = row.params.min_p;
  params.frequency_penalty = row.params.frequency_penalty;
  params.presence_penalty = row.params.presence_penalty;
  params.repetition_penalty = row.params.repetition_penalty;
  params.seed = row.params.seed;
  params.logit_bias.assign(row.bias.begin(), row.bias.end());
  params.top_logprobs = 0;
  std::vector<worker::TokenCount> counts;
  std::map<int32_t, float> occurred = row.counts;
  if (row.unlisted >= 0) occurred[row.unlisted] += 1;
  for (const auto& [id, count] : occurred) counts.push_back({id, static_cast<int32_t>(count)});
  std::vector<float> logits = row.logits;
  worker::SamplerScratch scratch;
  const auto sampled = worker::Sample(
      absl::MakeSpan(logits),
      {&params, counts, static_cast<int64_t>(row.params.position), row.mask}, scratch);
  if (absl::IsFailedPrecondition(sampled.status())) return {-2};
  if (!sampled.ok()) return {};
  return {sampled->token_id, sampled->logprob->chosen.logprob};
}

enum class Against { kDefinition, kEngine };

struct Inputs {
  std::vector<float> parts;
  std::vector<kernels::DeviceSampling> params;
  std::vector<int32_t> ids;
  std::vector<float> values;
  std::vector<uint32_t> masks;
  std::vector<int32_t> unlisted;
};

// Fills in the rows' places in the lists, too.
Inputs LayOut(std::vector<RowInput>& rows, int64_t vocabulary, int64_t part_size) {
  const int64_t part_count = (vocabulary + part_size - 1) / part_size;
  const auto part_stride = static_cast<int64_t>(rows.size()) * part_size;
  Inputs inputs;
  inputs.parts.assign(part_count * part_stride, 77.0f);
  for (size_t i = 0; i < rows.size(); ++i) {
    RowInput& row = rows[i];
    for (int64_t id = 0; id < vocabulary; ++id) {
      inputs.parts[LogitOffset(static_cast<int64_t>(i), id, part_size, part_stride)] =
          row.logits[id];
    }
    const auto add = [&](const std::map<int32_t, float>& list) {
      for (const auto& [id, value] : list) {
        inputs.ids.push_back(id);
        inputs.values.push_back(value);
      }
      return static_cast<int32_t>(inputs.ids.size());
    };
    row.params.list_begin = static_cast<int32_t>(inputs.ids.size());
    row.params.bias_end = add(row.bias);
    row.params.list_end = add(row.counts);
    if (!row.mask.empty()) {
      row.params.mask_row = static_cast<int32_t>(inputs.masks.size() / row.mask.size());
      inputs.masks.insert(inputs.masks.end(), row.mask.begin(), row.mask.end());
    }
    if (row.unlisted >= 0) row.params.unlisted_row = static_cast<int32_t>(inputs.unlisted.size());
    if (row.unlisted >= 0) inputs.unlisted.push_back(row.unlisted);
    inputs.params.push_back(row.params);
  }
  return inputs;
}

struct Outputs {
  std::vector<float> parts;
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
};

absl::StatusOr<Outputs> SampleOnDevice(worker::Device& device, const Inputs& inputs,
                                       int64_t vocabulary, int64_t part_size) {
  const auto count = static_cast<int64_t>(inputs.params.size());
  ASSIGN_OR_RETURN(auto parts, DeviceArray<float>::From(device, inputs.parts));
  ASSIGN_OR_RETURN(auto params, DeviceArray<kernels::DeviceSampling>::From(device, inputs.params));
  ASSIGN_OR_RETURN(auto ids, DeviceArray<int32_t>::From(device, inputs.ids));
  ASSIGN_OR_RETURN(auto values, DeviceArray<float>::From(device, inputs.values));
  ASSIGN_OR_RETURN(auto originals,
                   DeviceArray<float>::Make(device, static_cast<int64_t>(inputs.ids.size())));
  ASSIGN_OR_RETURN(auto masks, DeviceArray<uint32_t>::From(device, inputs.masks));
  ASSIGN_OR_RETURN(auto unlisted, DeviceArray<int32_t>::From(device, inputs.unlisted));
  ASSIGN_OR_RETURN(auto tokens, DeviceArray<int32_t>::Make(device, count));
  ASSIGN_OR_RETURN(auto logprobs, DeviceArray<float>::Make(device, count));
  kernels::SampleArgs args;
  args.parts = parts.data();
  args.part_size = part_size;
  args.part_stride = count * part_size;
  args.vocabulary = vocabulary;
  args.rows = params.data();
  args.list_ids = ids.data();
  args.list_values = values.data();
  args.list_originals = originals.data();
  args.ids = unlisted.data();
  args.masks = masks.data();
  args.tokens = tokens.data();
  args.logprobs = logprobs.data();
  args.num_rows = count;
  device.ops().sample(args, device.stream());
  Outputs outputs;
  ASSIGN_OR_RETURN(outputs.parts, parts.Read(device));
  ASSIGN_OR_RETURN(outputs.tokens, tokens.Read(device));
  ASSIGN_OR_RETURN(outputs.logprobs, logprobs.Read(device));
  return outputs;
}

absl::Status RunParts(Trial& trial, int64_t vocabulary, int64_t part_size, Against against) {
  const bool is_random = against == Against::kEngine;
  std::vector<RowInput> rows =
      is_random ? MakeRandomRows(trial.random, vocabulary, 60) : MakeRows(trial.random, vocabulary);
  const auto count = static_cast<int64_t>(rows.size());
  const Inputs inputs = LayOut(rows, vocabulary, part_size);
  ASSIGN_OR_RETURN(const Outputs outputs,
                   SampleOnDevice(trial.device, inputs, vocabulary, part_size));
  std::vector<float> actual, expected;
  for (int64_t i = 0; i < count; ++i) {
    const RowInput& row = rows[i];
    const int32_t token = outputs.tokens[i];
    const float logprob = outputs.logprobs[i];
    const std::string name = absl::StrCat("row ", i, " of ", vocabulary, " in parts of ", part_size,
                                          ": token ", token, " of ", logprob);
    for (int64_t id = 0; row.params.keeps_logits && id < vocabulary; ++id) {
      trial.Require(
          absl::StrCat(name, ": the logit of token ", id, " stays"),
          outputs.parts[LogitOffset(i, id, part_size, count * part_size)] == row.logits[id]);
    }
    if (!row.params.keeps_logits) {
      const Expected engine = OfTheEngine(row);
      trial.Require(absl::StrCat(name, ", the engine's ", engine.token, " of ", engine.logprob),
                    token == engine.token &&
                        (token < 0 || !row.params.wants_logprob || logprob == engine.logprob));
    }
    if (is_random) continue;
    const bool is_broken = i == count - 1;
    const Expected wanted = is_broken ? Expected{} : Sampled(row);
    trial.Require(absl::StrCat(name, ", expected ", wanted.token), token == wanted.token);
    if (wanted.token < 0) continue;
    actual.push_back(logprob);
    expected.push_back(wanted.logprob);
  }
  if (!is_random) trial.Compare("log-probabilities", actual, expected, 1e-4, 1e-5);
  return absl::OkStatus();
}

}  // namespace

absl::Status SampleCase(Trial& trial) {
  RETURN_IF_ERROR(RunParts(trial, 1000, 1000, Against::kDefinition));
  RETURN_IF_ERROR(RunParts(trial, 4999, 2500, Against::kDefinition));
  RETURN_IF_ERROR(RunParts(trial, 331, 331, Against::kEngine));
  return RunParts(trial, 2503, 640, Against::kEngine);
}

}  // namespace rempart::benchmarks
