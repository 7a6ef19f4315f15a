// SPDX-License-Identifier: Apache-2.0
// A model whose arithmetic a test can redo: it keeps tokens in its paged memory instead of keys and
// values, and its logits are a hash of all tokens that it reads back through the block table. A
// wrong block, position or order therefore changes what it says.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "common/check.h"
#include "worker/engine/model_runner.h"

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

class FakeModel : public ModelRunner {
 public:
  FakeModel(int32_t blocks, int32_t block_size)
      : block_size_(block_size), memory_(static_cast<size_t>(blocks * block_size), -1) {}

  int32_t vocabulary_size() const override { return kFakeVocabulary; }

  absl::Status Forward(const StepBatch& batch, absl::Span<float> logits) override {
    ++forward_count;
    batch_sizes.push_back(batch.slices.size());
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
      ++row;
    }
    CHECK_EQ(row * kFakeVocabulary, logits.size());
    return absl::OkStatus();
  }

  float end_logit = -1e9f;
  // May change the logits of a context.
  std::function<void(const std::vector<int32_t>&, float*)> script;
  absl::Status next_status;  // returned once
  int forward_count = 0;
  int copy_count = 0;
  int64_t token_count = 0;  // computed, of all slices
  std::vector<size_t> batch_sizes;

 private:
  int32_t& Slot(const SequenceSlice& slice, int32_t position) {
    const size_t index = static_cast<size_t>(position / block_size_);
    CHECK_LT(index, slice.block_table.size());
    return memory_.at(
        static_cast<size_t>(slice.block_table[index] * block_size_ + position % block_size_));
  }

  const int32_t block_size_;
  std::vector<int32_t> memory_;
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
