// SPDX-License-Identifier: Apache-2.0
#include "worker/api/frame_writer.h"

#include <algorithm>
#include <climits>

namespace rempart::worker {
namespace {

v1::Finish::Reason ReasonOf(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::Finish::STOP;
    case FinishReason::kLength:
      return v1::Finish::LENGTH;
    case FinishReason::kCancelled:
      return v1::Finish::CANCELLED;
    case FinishReason::kDeadline:
      return v1::Finish::DEADLINE;
  }
  return v1::Finish::REASON_UNSPECIFIED;
}

v1::Failure::Code CodeOf(FailureCode code) {
  switch (code) {
    case FailureCode::kInvalidArgument:
      return v1::Failure::INVALID_ARGUMENT;
    case FailureCode::kContextOverflow:
      return v1::Failure::CONTEXT_OVERFLOW;
    case FailureCode::kOverloaded:
      return v1::Failure::OVERLOADED;
    case FailureCode::kInternal:
      return v1::Failure::INTERNAL;
    case FailureCode::kDraining:
      return v1::Failure::DRAINING;
    case FailureCode::kGroupLost:
      return v1::Failure::GROUP_LOST;
  }
  return v1::Failure::CODE_UNSPECIFIED;
}

void WriteLogprob(const TokenLogprob& from, const Vocabulary& vocabulary, v1::TokenLogprob* out) {
  out->set_token_id(from.token_id);
  out->set_token_bytes(vocabulary.TokenBytes(from.token_id));
  out->set_logprob(from.logprob);
}

}  // namespace

void WriteFailure(const Failure& failure, v1::Failure* out) {
  out->set_code(CodeOf(failure.code));
  out->set_message(failure.message);
  out->set_field(failure.field);
}

void WriteDelta(const SequenceDelta& delta, uint64_t request_id, const Vocabulary& vocabulary,
                v1::Delta* out) {
  out->set_request_id(request_id);
  out->set_index(delta.index);
  out->mutable_token_ids()->Add(delta.token_ids.begin(), delta.token_ids.end());
  out->set_text(delta.text);
  for (const SampledLogprob& logprob : delta.logprobs) {
    v1::TokenLogprob* written = out->add_logprobs();
    WriteLogprob(logprob.chosen, vocabulary, written);
    for (const TokenLogprob& top : logprob.top) WriteLogprob(top, vocabulary, written->add_top());
  }
  if (delta.prompt) {
    out->mutable_prompt()->set_prompt_tokens(delta.prompt->prompt_tokens);
    out->mutable_prompt()->set_cached_tokens(delta.prompt->cached_tokens);
    if (delta.prompt->seed) {
      out->mutable_prompt()->set_seed(static_cast<int64_t>(*delta.prompt->seed));
    }
  }
  if (delta.finish) {
    v1::Finish* finish = out->mutable_finish();
    finish->set_reason(ReasonOf(delta.finish->reason));
    finish->set_matched_stop(delta.finish->matched_stop);
    finish->set_completion_tokens(delta.finish->completion_tokens);
  }
  if (delta.failure) WriteFailure(*delta.failure, out->mutable_error());
}

void WriteLoad(const EngineLoad& load, v1::Load* out) {
  out->set_state(load.draining ? v1::Load::DRAINING : v1::Load::READY);
  out->set_running(load.running);
  out->set_waiting(load.waiting);
  out->set_queued_prefill_tokens(
      static_cast<int32_t>(std::min<int64_t>(load.queued_prefill_tokens, INT32_MAX)));
  out->set_kv_blocks_used(load.blocks_used);
  out->set_kv_blocks_total(load.blocks_total);
  out->set_prefill_tokens_per_second(static_cast<float>(load.prefill_tokens_per_second));
  out->set_step_ms(static_cast<float>(load.step_ms));
}

}  // namespace rempart::worker
