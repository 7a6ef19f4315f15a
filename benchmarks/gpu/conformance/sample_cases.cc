// SPDX-License-Identifier: Apache-2.0
// Sampling against the plain definition: sort, cut, draw in the order of ids; sums in double.
#include <algorithm>
#include <map>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "benchmarks/gpu/conformance/harness.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/sample_math.h"

namespace rempart::benchmarks {
namespace {

struct RowInput {
  kernels::DeviceSampling params;
  std::map<int32_t, float> bias, counts;
  std::vector<uint32_t> mask;
  std::vector<float> logits;
};

struct Expected {
  int32_t token = -1;
  float logprob = 0;
};

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
  if (!std::isfinite(logits[best])) return expected;
  expected.token = best;
  if (row.params.temperature > 0.0f) {
    std::vector<double> weights;
    for (const double logit : logits) {
      weights.push_back(std::exp((logit - logits[best]) / row.params.temperature));
    }
    const std::vector<int32_t> kept = Kept(logits, row.params, weights);
    double total = 0, walked = 0;
    for (const int32_t id : kept) total += weights[id];
    const double target = kernels::cuda::UniformOf(row.params.seed, row.params.position) * total;
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
  RowInput& broken = add(0.0f, 0, 1.0f, 0.0f);
  broken.logits[vocabulary / 2] = NAN;
  return rows;
}

absl::Status RunParts(Trial& trial, int64_t vocabulary, int64_t part_size) {
  std::vector<RowInput> rows = MakeRows(trial.random, vocabulary);
  const auto count = static_cast<int64_t>(rows.size());
  const int64_t part_count = (vocabulary + part_size - 1) / part_size;
  const int64_t part_stride = count * part_size;
  std::vector<float> parts(part_count * part_stride, 77.0f);
  std::vector<kernels::DeviceSampling> params;
  std::vector<int32_t> ids;
  std::vector<float> values;
  std::vector<uint32_t> masks;
  for (int64_t i = 0; i < count; ++i) {
    RowInput& row = rows[i];
    for (int64_t id = 0; id < vocabulary; ++id) {
      parts[kernels::cuda::LogitOffset(i, id, part_size, part_stride)] = row.logits[id];
    }
    row.params.list_begin = static_cast<int32_t>(ids.size());
    for (const auto& [id, bias] : row.bias) ids.push_back(id), values.push_back(bias);
    row.params.bias_end = static_cast<int32_t>(ids.size());
    for (const auto& [id, times] : row.counts) ids.push_back(id), values.push_back(times);
    row.params.list_end = static_cast<int32_t>(ids.size());
    if (!row.mask.empty()) {
      row.params.mask_row = static_cast<int32_t>(masks.size() / row.mask.size());
      masks.insert(masks.end(), row.mask.begin(), row.mask.end());
    }
    params.push_back(row.params);
  }
  ASSIGN_OR_RETURN(auto parts_device, DeviceArray<float>::From(trial.device, parts));
  ASSIGN_OR_RETURN(auto params_device,
                   DeviceArray<kernels::DeviceSampling>::From(trial.device, params));
  ASSIGN_OR_RETURN(auto ids_device, DeviceArray<int32_t>::From(trial.device, ids));
  ASSIGN_OR_RETURN(auto values_device, DeviceArray<float>::From(trial.device, values));
  ASSIGN_OR_RETURN(auto originals,
                   DeviceArray<float>::Make(trial.device, static_cast<int64_t>(ids.size())));
  ASSIGN_OR_RETURN(auto masks_device, DeviceArray<uint32_t>::From(trial.device, masks));
  ASSIGN_OR_RETURN(auto tokens, DeviceArray<int32_t>::Make(trial.device, count));
  ASSIGN_OR_RETURN(auto logprobs, DeviceArray<float>::Make(trial.device, count));
  kernels::SampleArgs args;
  args.parts = parts_device.data();
  args.part_size = part_size;
  args.part_stride = part_stride;
  args.vocabulary = vocabulary;
  args.rows = params_device.data();
  args.list_ids = ids_device.data();
  args.list_values = values_device.data();
  args.list_originals = originals.data();
  args.masks = masks_device.data();
  args.tokens = tokens.data();
  args.logprobs = logprobs.data();
  args.num_rows = count;
  trial.device.ops().sample(args, trial.device.stream());
  ASSIGN_OR_RETURN(const auto actual_tokens, tokens.Read(trial.device));
  ASSIGN_OR_RETURN(const auto actual_logprobs, logprobs.Read(trial.device));
  std::vector<float> actual, expected;
  for (int64_t i = 0; i < count; ++i) {
    const bool is_broken = i == count - 1;
    const Expected wanted = is_broken ? Expected{} : Sampled(rows[i]);
    trial.Require(absl::StrCat("row ", i, " of ", vocabulary, " in parts of ", part_size,
                               ": token ", actual_tokens[i], ", expected ", wanted.token),
                  actual_tokens[i] == wanted.token);
    if (wanted.token < 0) continue;
    actual.push_back(actual_logprobs[i]);
    expected.push_back(wanted.logprob);
  }
  trial.Compare("log-probabilities", actual, expected, 1e-4, 1e-5);
  return absl::OkStatus();
}

}  // namespace

absl::Status SampleCase(Trial& trial) {
  RETURN_IF_ERROR(RunParts(trial, 1000, 1000));
  return RunParts(trial, 4999, 2500);
}

}  // namespace rempart::benchmarks
