// SPDX-License-Identifier: Apache-2.0
// A model whose arithmetic a test can redo: it keeps tokens in its paged memory instead of keys and
// values, and its logits are a hash of all tokens that it reads back through the block table. A
// wrong block, position or order therefore changes what it says.
#pragma once

#include <algorithm>
#include <deque>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "common/check.h"
#include "worker/engine/model_runner.h"
#include "worker/engine/sampler.h"

namespace rempart::worker {

constexpr int32_t kFakeVocabulary = 257;  // one id per byte, and the end
constexpr int32_t kFakeEnd = 256;

inline uint64_t FakeHash(uint64_t state, uint64_t value) {
  state = (state ^ value) * 0x9e3779b97f4a7c15u;
  return state ^ (state >> 29);
}

// Logit of `id` after `context`; the end has a probability of its own, set by the test.
inline void FakeLogits(const std::vector<int32_t>& context, float end_logit, float* logits) {
  uint64_t state = 1;
  for (int32_t token : context) state = FakeHash(state, static_cast<uint64_t>(token) + 1);
  for (int32_t id = 0; id < kFakeEnd; ++id) {
    logits[id] = static_cast<float>(FakeHash(state, static_cast<uint64_t>(id)) >> 40) / (1 << 21);
  }
  logits[kFakeEnd] = end_logit;
}

class FakeModel : public ModelRunner, private StepPipeline {
 public:
  FakeModel(int32_t blocks, int32_t block_size, bool has_pipeline = false)
      : is_pipelined_(has_pipeline),
        block_size_(block_size),
        memory_(static_cast<size_t>(blocks * block_size), -1) {
    if (has_pipeline) draws = [] { return true; };
  }

  int32_t vocabulary_size() const override { return kFakeVocabulary; }

  absl::Status Forward(const StepBatch& batch, absl::Span<float> logits,
                       absl::Span<DrawnToken> drawn) override {
    ++forward_count;
    batch_sizes.push_back(batch.slices.size());
    if (on_forward) on_forward(batch);
    if (!next_status.ok()) return std::exchange(next_status, absl::OkStatus());
    for (const BlockCopy& copy : batch.copies) {
      ++copy_count;
      std::copy_n(memory_.begin() + copy.source * block_size_, block_size_,
                  memory_.begin() + copy.destination * block_size_);
    }
    size_t row = 0;
    for (const SequenceSlice& slice : batch.slices) {
      int32_t position = slice.first_position;
      token_count += static_cast<int64_t>(slice.token_ids.size());
      for (int32_t token : slice.token_ids) Slot(slice, position++) = token;
      if (!slice.wants_logits) continue;
      std::vector<int32_t> context;
      for (int32_t p = 0; p < position; ++p) context.push_back(Slot(slice, p));
      FakeLogits(context, end_logit, logits.data() + row * kFakeVocabulary);
      if (script) script(context, logits.data() + row * kFakeVocabulary);
      if (slice.sampling != nullptr && draws && draws()) {
        drawn[row] = Drawn(*slice.sampling, logits.subspan(row * kFakeVocabulary, kFakeVocabulary));
      }
      offered_count += slice.sampling != nullptr ? 1 : 0;
      ++row;
    }
    CHECK_EQ(row * kFakeVocabulary, logits.size());
    return absl::OkStatus();
  }

  StepPipeline* pipeline() override { return is_pipelined_ ? this : nullptr; }
  size_t steps_running() const { return outputs_.size(); }
  // In the newest step of the pipeline.
  const std::vector<DrawnToken>& last_drawn() const { return last_drawn_; }

  float end_logit = -1e9f;
  // May change the logits of a context.
  std::function<void(const std::vector<int32_t>&, float*)> script;
  // Hears of each batch before it is computed.
  std::function<void(const StepBatch&)> on_forward;
  // Whether to draw a token that the engine lets it draw.
  std::function<bool()> draws;
  absl::Status next_status;  // returned once
  absl::Status next_finish;  // of a step of the pipeline, once
  int ahead_count = 0;       // steps begun while another one ran
  int forward_count = 0;
  int copy_count = 0;
  int offered_count = 0;    // rows that it might draw
  int64_t token_count = 0;  // computed, of all slices
  std::vector<size_t> batch_sizes;

 private:
  struct Output {
    std::vector<float> logits;
    std::vector<DrawnToken> drawn;
    bool is_all_drawn = true;
  };

  // Computes at once, as a device that is faster than the host; tells at Finish.
  absl::StatusOr<bool> Start(const StepBatch& batch) override {
    CHECK_LT(outputs_.size(), 2u);
    CHECK(outputs_.empty() || outputs_.front().is_all_drawn);
    ahead_count += outputs_.empty() ? 0 : 1;
    StepBatch known = batch;
    std::vector<int32_t> tokens(batch.slices.size());
    std::vector<SliceSampling> samplings(batch.slices.size());
    std::vector<TokenCounts> counts(batch.slices.size());
    size_t wanting = 0;
    for (size_t i = 0; i < batch.slices.size(); ++i) {
      SequenceSlice& slice = known.slices[i];
      wanting += slice.wants_logits ? 1 : 0;
      if (slice.follows < 0) continue;
      CHECK_EQ(slice.token_ids.size(), 1u);
      CHECK(last_drawn_.at(static_cast<size_t>(slice.follows)).is_drawn);
      tokens[i] = last_drawn_[static_cast<size_t>(slice.follows)].token_id;
      slice.token_ids = absl::MakeConstSpan(&tokens[i], 1);
      if (slice.sampling == nullptr || !slice.sampling->params->has_penalties()) continue;
      counts[i] = CountsWith(slice.sampling->counts, tokens[i]);
      samplings[i] = *slice.sampling;
      samplings[i].counts = counts[i].tokens();
      slice.sampling = &samplings[i];
    }
    Output output;
    output.logits.resize(wanting * kFakeVocabulary);
    output.drawn.resize(wanting);
    const absl::Status status =
        Forward(known, absl::MakeSpan(output.logits), absl::MakeSpan(output.drawn));
    if (!status.ok()) return status;
    for (const DrawnToken& drawn : output.drawn) output.is_all_drawn &= drawn.is_drawn;
    last_drawn_ = output.drawn;
    outputs_.push_back(std::move(output));
    return outputs_.back().is_all_drawn;
  }

  absl::Status Finish(absl::Span<float> logits, absl::Span<DrawnToken> drawn) override {
    CHECK(!outputs_.empty());
    const Output output = std::move(outputs_.front());
    outputs_.pop_front();
    if (!output.is_all_drawn) {
      CHECK_EQ(logits.size(), output.logits.size());
      std::copy(output.logits.begin(), output.logits.end(), logits.begin());
    }
    CHECK_EQ(drawn.size(), output.drawn.size());
    std::copy(output.drawn.begin(), output.drawn.end(), drawn.begin());
    return std::exchange(next_finish, absl::OkStatus());
  }

  static TokenCounts CountsWith(absl::Span<const TokenCount> counts, int32_t token_id) {
    TokenCounts sum;
    for (const TokenCount& count : counts) {
      sum.AddPrompt(count.token_id);
      for (int32_t i = 0; i < count.generated; ++i) sum.AddGenerated(count.token_id);
    }
    sum.AddGenerated(token_id);
    return sum;
  }

  // And spoils the logits, which nobody may look at then.
  static DrawnToken Drawn(const SliceSampling& sampling, absl::Span<float> logits) {
    SamplerScratch scratch;
    const absl::StatusOr<Sampled> sampled = Sample(logits, sampling, scratch);
    std::fill(logits.begin(), logits.end(), -3.0f);
    if (!sampled.ok()) return {true, absl::IsFailedPrecondition(sampled.status()) ? -2 : -1, 0};
    return {true, sampled->token_id, sampled->logprob ? sampled->logprob->chosen.logprob : 0};
  }

  int32_t& Slot(const SequenceSlice& slice, int32_t position) {
    const size_t index = static_cast<size_t>(position / block_size_);
    CHECK_LT(index, slice.block_table.size());
    return memory_.at(
        static_cast<size_t>(slice.block_table[index] * block_size_ + position % block_size_));
  }

  const bool is_pipelined_;
  const int32_t block_size_;
  std::vector<int32_t> memory_;
  std::deque<Output> outputs_;  // of the steps that run
  std::vector<DrawnToken> last_drawn_;
};

class FakeVocabulary : public Vocabulary {
 public:
  std::string TokenBytes(int32_t id) const override {
    return id < kFakeEnd ? std::string(1, static_cast<char>(id)) : std::string();
  }
  bool EndsGeneration(int32_t id) const override { return id == kFakeEnd; }
};

// Makes the model say `text` after `prompt`, then end.
inline void Recite(FakeModel& model, size_t prompt_tokens, const std::string& text) {
  model.script = [prompt_tokens, text](const std::vector<int32_t>& context, float* logits) {
    const size_t said = context.size() - prompt_tokens;
    logits[said < text.size() ? static_cast<uint8_t>(text[said]) : kFakeEnd] = 1e6f;
  };
}

}  // namespace rempart::worker
