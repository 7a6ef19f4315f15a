// SPDX-License-Identifier: Apache-2.0
#include "worker/model/step_batch.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace rempart::worker {

std::vector<StepBatch> MicroBatches(const StepBatch& batch) {
  std::vector<StepBatch> parts(1);
  if (batch.micro_batch_tokens <= 0) {
    parts[0].slices = batch.slices;
    return parts;
  }
  const auto limit = static_cast<size_t>(batch.micro_batch_tokens);
  size_t room = limit;
  for (const SequenceSlice& slice : batch.slices) {
    for (size_t begin = 0; begin < slice.token_ids.size();) {
      if (room == 0) {
        parts.emplace_back();
        room = limit;
      }
      const size_t count = std::min(room, slice.token_ids.size() - begin);
      SequenceSlice part = slice;
      part.token_ids = slice.token_ids.subspan(begin, count);
      part.first_position = slice.first_position + static_cast<int32_t>(begin);
      begin += count;
      room -= count;
      part.wants_logits = slice.wants_logits && begin == slice.token_ids.size();
      parts.back().slices.push_back(part);
    }
  }
  return parts;
}

absl::Status CheckSampling(const SliceSampling& sampling, int64_t vocabulary) {
  const auto check = [&](int32_t id) {
    if (id >= 0 && id < vocabulary) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        "token ", id, " of a bias or penalty is outside the vocabulary of ", vocabulary));
  };
  const auto mask_words = static_cast<int64_t>(sampling.mask.size());
  if (mask_words != 0 && mask_words != MaskWords(vocabulary)) {
    return absl::InvalidArgumentError(absl::StrCat("a mask of tokens has ", mask_words,
                                                   " words, but a vocabulary of ", vocabulary,
                                                   " tokens takes ", MaskWords(vocabulary)));
  }
  for (const auto& [id, bias] : sampling.params->logit_bias) RETURN_IF_ERROR(check(id));
  for (const TokenCount& count : sampling.counts) RETURN_IF_ERROR(check(count.token_id));
  return absl::OkStatus();
}

}  // namespace rempart::worker
