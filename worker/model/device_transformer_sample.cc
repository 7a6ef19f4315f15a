// SPDX-License-Identifier: Apache-2.0
// The part of the device's decoder behind the logits: tokens are drawn where these are, and what
// the host needs is copied to it.
#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/model/device_transformer.h"

namespace rempart::worker {
namespace {

kernels::DeviceSampling DeviceSamplingOf(const SliceSampling& sampling) {
  const SamplingParams& params = *sampling.params;
  kernels::DeviceSampling to;
  to.temperature = params.temperature;
  to.top_p = params.top_p;
  to.min_p = params.min_p;
  to.repetition_penalty = params.repetition_penalty;
  to.frequency_penalty = params.frequency_penalty;
  to.presence_penalty = params.presence_penalty;
  to.top_k = params.top_k;
  to.seed = params.seed;
  to.position = static_cast<uint64_t>(sampling.position);
  to.wants_logprob = params.top_logprobs >= 0;
  return to;
}

}  // namespace

absl::Status DeviceTransformer::CheckFollows(const SequenceSlice& slice) const {
  const Step& before = step_before();
  const bool is_there = slice.token_ids.size() == 1 &&
                        slice.follows < static_cast<int64_t>(before.row_of_wanted.size());
  // Who draws alone knows what was drawn.
  if (is_there && (!reads_logits() || before.rows[before.row_of_wanted[slice.follows]].is_drawn)) {
    return absl::OkStatus();
  }
  const std::string message = absl::StrCat("no token ", slice.follows,
                                           " was drawn in the step before, for a slice of one "
                                           "token");
  return is_there ? absl::FailedPreconditionError(message) : absl::InvalidArgumentError(message);
}

absl::Status DeviceTransformer::CheckIdle() const {
  return begun_ == ended_ ? absl::OkStatus() : absl::FailedPreconditionError("a step runs");
}

void DeviceTransformer::StageRows(const StepBatch& batch, StepShape& shape) {
  Step& step = staged();
  std::vector<int32_t>& row_of_wanted = step.row_of_wanted;
  // First, by slice of the batch, the place among those that want logits.
  row_of_wanted.clear();
  int32_t wanted = 0;
  for (const SequenceSlice& slice : batch.slices) {
    row_of_wanted.push_back(slice.wants_logits ? wanted++ : -1);
  }
  step.rows.clear();
  for (size_t place = 0; place < step.order.size(); ++place) {
    const size_t index = step.order[place];
    if (!batch.slices[index].wants_logits) continue;
    step.host.rows[shape.wanting++] = step.host.starts[place + 1] - 1;
    step.rows.push_back({row_of_wanted[index], false, false});
  }
  row_of_wanted.resize(step.rows.size());
  for (size_t row = 0; row < step.rows.size(); ++row) {
    row_of_wanted[step.rows[row].wanted] = static_cast<int32_t>(row);
  }
}

void DeviceTransformer::StageSources(const StepBatch& batch, StepShape& shape) {
  Step& step = staged();
  for (int64_t place = 0; place < shape.decodes; ++place) {
    const int32_t follows = batch.slices[step.order[place]].follows;
    step.host.sources[place] = follows < 0 ? -1 : step_before().row_of_wanted[follows];
    shape.follows |= follows >= 0;
  }
}

bool DeviceTransformer::ListTokens(const SliceSampling& sampling, kernels::DeviceSampling& to) {
  Step& step = staged();
  int64_t& listed = step.listed;
  const auto& biases = sampling.params->logit_bias;
  const int64_t room = plan_.workspace.listed - listed;
  if (static_cast<int64_t>(biases.size() + sampling.counts.size()) > room) return false;
  auto* ids = step.lists.as<int32_t>();
  auto* values = step.lists.as<float>() + plan_.workspace.listed;
  to.list_begin = static_cast<int32_t>(listed);
  for (const auto& [id, bias] : biases) {
    ids[listed] = id;
    values[listed++] = bias;
  }
  to.bias_end = static_cast<int32_t>(listed);
  for (const TokenCount& count : sampling.counts) {
    ids[listed] = count.token_id;
    values[listed++] = static_cast<float>(count.generated);
  }
  to.list_end = static_cast<int32_t>(listed);
  return true;
}

// For which there is always room: as many as there are slices.
void DeviceTransformer::StageMask(const SliceSampling& sampling, kernels::DeviceSampling& to) {
  if (sampling.mask.empty()) return;
  Step& step = staged();
  to.mask_row = static_cast<int32_t>(step.masked++);
  std::copy(sampling.mask.begin(), sampling.mask.end(),
            step.masks.as<uint32_t>() + to.mask_row * plan_.workspace.mask_words);
}

void DeviceTransformer::StageSampling(const StepBatch& batch, StepShape& shape, bool draws) {
  Step& step = staged();
  step.listed = step.masked = 0;
  if (!reads_logits()) return;
  shape.samples = shape.wanting > 0 && config_.logit_softcap > 0;
  for (int64_t i = 0; i < shape.wanting; ++i) {
    step.host.sampling[i] = {};
    step.host.sampling[i].keeps_logits = true;
  }
  if (!draws) return;
  size_t row = 0;
  for (const size_t index : step.order) {
    const SequenceSlice& slice = batch.slices[index];
    if (!slice.wants_logits) continue;
    const size_t i = row++;
    if (slice.sampling == nullptr) continue;
    const SliceSampling& sampling = *slice.sampling;
    kernels::DeviceSampling drawn = DeviceSamplingOf(sampling);
    if (!ListTokens(sampling, drawn)) continue;
    StageMask(sampling, drawn);
    // The token that it follows is in no list yet: the device alone knows it.
    if (slice.follows >= 0 && sampling.params->has_penalties()) {
      drawn.unlisted_row = step.host.rows[i];
    }
    step.host.sampling[i] = drawn;
    step.rows[i].is_drawn = shape.samples = true;
    step.rows[i].has_logprob = drawn.wants_logprob;
  }
}

void DeviceTransformer::QueueSample(const StepShape& shape) {
  const DeviceWorkspace& space = plan_.workspace;
  kernels::SampleArgs args;
  args.parts = At<float>(space.all_logits);
  args.part_size = space.vocabulary;
  args.part_stride = shape.wanting * space.vocabulary;
  args.vocabulary = config_.vocabulary;
  args.softcap = config_.logit_softcap;
  args.rows = on_device_.sampling;
  args.list_ids = At<int32_t>(space.lists);
  args.list_values = At<float>(space.lists) + space.listed;
  args.list_originals = At<float>(space.lists) + 2 * space.listed;
  args.ids = on_device_.ids;
  args.masks = At<uint32_t>(space.masks);
  args.tokens = At<int32_t>(space.sampled);
  args.logprobs = At<float>(space.sampled) + space.slices;
  args.num_rows = shape.wanting;
  device_.ops().sample(args, device_.stream());
}

void DeviceTransformer::QueueAdvance(const StepShape& shape) {
  device_.ops().advance({At<int32_t>(plan_.workspace.sampled), on_device_.ids, on_device_.positions,
                         on_device_.contexts, on_device_.sampling, shape.wanting},
                        device_.stream());
}

// The ids of slices that follow the step before. Of several ranks rank 0 has drawn them: its share
// comes first. Always of one size, so that the graphs of all batches can hold it.
absl::Status DeviceTransformer::QueueFollow(const StepShape& shape) {
  const DeviceWorkspace& space = plan_.workspace;
  if (is_one_of_several()) {
    RETURN_IF_ERROR(communicator_->AllGather(At<int32_t>(space.sampled),
                                             At<int32_t>(space.all_sampled), 4 * space.slices));
  }
  kernels::AdvanceArgs args;
  args.tokens = At<int32_t>(space.all_sampled);
  args.ids = on_device_.ids;
  args.sources = on_device_.sources;
  args.num_rows = shape.decodes;
  device_.ops().advance(args, device_.stream());
  return absl::OkStatus();
}

// Tokens, and the logits of the rows that the host draws: neighbours together.
void DeviceTransformer::QueueResults(const StepShape& shape) {
  if (!reads_logits()) return;
  const DeviceWorkspace& space = plan_.workspace;
  const std::vector<Row>& rows = staged().rows;
  const auto is_drawn = [](const Row& row) { return row.is_drawn; };
  if (std::any_of(rows.begin(), rows.end(), is_drawn)) {
    device_.CopyOut(staged().results.as<int32_t>(), At<int32_t>(space.sampled),
                    2 * 4 * space.slices);
  }
  for (auto begin = std::find_if_not(rows.begin(), rows.end(), is_drawn); begin != rows.end();) {
    const auto end = std::find_if(begin, rows.end(), is_drawn);
    for (int64_t part = 0; part < partition_.of.size; ++part) {
      const int64_t offset = (part * shape.wanting + (begin - rows.begin())) * space.vocabulary;
      device_.CopyOut(logits_staging_.as<float>() + offset, At<float>(space.all_logits) + offset,
                      (end - begin) * space.vocabulary * 4);
    }
    begin = std::find_if_not(end, rows.end(), is_drawn);
  }
}

absl::Status DeviceTransformer::Finish(absl::Span<float> logits, absl::Span<DrawnToken> drawn) {
  if (begun_ == ended_) return absl::FailedPreconditionError("no step runs");
  const auto place = static_cast<int>(ended_++ % 2);
  RETURN_IF_ERROR(is_one_of_several() ? communicator_->Await(place) : device_.Await(place));
  if (!reads_logits()) return absl::OkStatus();
  const Step& step = steps_[place];
  const bool has_drawn =
      std::any_of(step.rows.begin(), step.rows.end(), [](const Row& row) { return row.is_drawn; });
  if (has_drawn && drawn.size() < step.rows.size()) {
    return absl::InvalidArgumentError("the tokens drawn have too little room");
  }
  if (step.leaves_logits() && static_cast<int64_t>(logits.size()) <
                                  static_cast<int64_t>(step.rows.size()) * config_.vocabulary) {
    return absl::InvalidArgumentError("the logits have too little room");
  }
  const auto* tokens = step.results.as<int32_t>();
  const auto* logprobs = step.results.as<float>() + plan_.workspace.slices;
  for (size_t i = 0; i < step.rows.size(); ++i) {
    const Row& row = step.rows[i];
    if (row.is_drawn) {
      drawn[row.wanted] = {true, tokens[i], row.has_logprob ? logprobs[i] : 0};
    } else {
      ReadLogits(static_cast<int64_t>(i), step.logit_rows,
                 logits.data() + row.wanted * config_.vocabulary);
    }
  }
  return absl::OkStatus();
}

// Row `row` of `rows` of the staged logits, in the order of the vocabulary.
void DeviceTransformer::ReadLogits(int64_t row, int64_t rows, float* to) const {
  const int64_t part = plan_.workspace.vocabulary;
  for (int64_t first = 0; first < config_.vocabulary; first += part) {
    std::copy_n(logits_staging_.as<float>() + first * rows + row * part,
                std::min(part, config_.vocabulary - first), to + first);
  }
}

absl::Status DeviceTransformer::DecodeMany(absl::Span<const DecodeSequence> sequences,
                                           int64_t steps, std::vector<int32_t>* tokens) {
  const auto count = static_cast<int64_t>(sequences.size());
  StepBatch checked;
  int64_t longest = 0;
  for (const DecodeSequence& sequence : sequences) {
    if (sequence.sampling.mask_row >= 0) {
      return absl::InvalidArgumentError("a mask allows one token, not those of many steps");
    }
    checked.slices.push_back({{&sequence.token_id, 1},
                              sequence.position + static_cast<int32_t>(steps) - 1,
                              sequence.block_table,
                              false});
    longest = std::max(longest, sequence.position + steps);
  }
  if (is_staged()) {
    return absl::FailedPreconditionError("a token of one stage is known when all have computed it");
  }
  RETURN_IF_ERROR(CheckCommunicator());
  RETURN_IF_ERROR(CheckIdle());
  RETURN_IF_ERROR(Check(checked));
  if (count == 0 || steps == 0) return absl::OkStatus();
  const Inputs& host = staged().host;
  StepShape shape;
  for (const DecodeSequence& sequence : sequences) {
    const int64_t i = shape.slices++;
    PutToken(i, sequence.token_id, sequence.position, static_cast<int32_t>(i));
    host.starts[i + 1] = static_cast<int32_t>(i + 1);
    host.contexts[i] = sequence.position + 1;
    host.rows[i] = static_cast<int32_t>(i);
    host.sampling[i] = sequence.sampling;
    std::copy_n(sequence.block_table.data(),
                (sequence.position + steps + kernels::kKvBlockTokens - 1) / kernels::kKvBlockTokens,
                host.tables + i * plan_.workspace.table_stride);
  }
  host.starts[0] = 0;
  const int64_t split = plan_.workspace.split_tokens;
  shape.max_splits = (longest + split - 1) / split;
  shape.samples = true;
  Pad(shape);
  for (int64_t i = count; i < shape.wanting; ++i) {
    host.sampling[i] = {};
    host.sampling[i].keeps_logits = true;
  }
  staged().listed = staged().masked = 0;
  for (Step& step : steps_) step.row_of_wanted.clear();  // nobody follows them any more
  QueueInputs(shape.slices);
  auto* sampled = sampled_staging_.as<int32_t>();
  tokens->resize(steps * count);
  for (int64_t first = 0; first < steps; first += kRun) {
    const int64_t run = std::min(kRun, steps - first);
    for (int64_t step = 0; step < run; ++step) {
      RETURN_IF_ERROR(StartDecode(shape));
      device_.CopyOut(sampled + step * shape.wanting, At<int32_t>(plan_.workspace.sampled),
                      shape.wanting * 4);
    }
    RETURN_IF_ERROR(AwaitAll());
    for (int64_t step = 0; step < run; ++step) {
      std::copy_n(sampled + step * shape.wanting, count, tokens->data() + (first + step) * count);
    }
  }
  return absl::OkStatus();
}

}  // namespace rempart::worker
