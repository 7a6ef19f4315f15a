// SPDX-License-Identifier: Apache-2.0
// The part of the engine that plans a step, carries it out and turns logits into tokens.
#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "worker/engine/engine_sequence.h"
#include "worker/engine/scheduler.h"

namespace rempart::worker {
namespace {

// Weight of the newest value in a moving average.
constexpr double kAverageWeight = 0.1;

bool AllowsAny(absl::Span<const uint32_t> mask, int32_t vocabulary_size) {
  const auto is_set = [](uint32_t word) { return word != 0; };
  if (std::any_of(mask.begin(), mask.end() - 1, is_set)) return true;
  const int32_t in_last = (vocabulary_size - 1) % 32 + 1;
  return (mask.back() & (0xffffffffu >> (32 - in_last))) != 0;
}

double Average(double average, double value) {
  return average == 0 ? value : average + kAverageWeight * (value - average);
}

}  // namespace

// What the scheduler sees of a sequence, with the cache as it is now.
void Engine::RefreshView(Sequence& sequence) {
  ScheduledSequence& view = sequence.view;
  SequenceBlocks& page = sequence.page;
  int32_t held = view.tokens_computed;
  if (!view.running) {
    ledger_.Match(page, sequence.tokens);
    held = static_cast<int32_t>(page.match.size()) * options_.limits.block_size;
  } else if (view.tokens_known - view.tokens_computed > 1) {
    held = view.tokens_computed = ledger_.CatchUp(page, sequence.tokens, held);
  }
  view.blocks = view.running ? page.blocks : page.match;
  view.copy_source = page.copy_source;
  view.next_block_label = ledger_.NextBlockLabel(page, sequence.tokens, held);
  view.client = sequence.client->index;
  view.awaits_token = sequence.awaits_token();
}

StepPlan Engine::MakePlan() {
  if (figures_.memory_short) {
    ledger_.HoldBackFresh();
  } else {
    ledger_.GiveOutFresh();
  }
  EngineState state;
  state.limits = options_.limits;
  figures_.prefill_budget = pace_.PrefillTokensBesideDecodes(options_.limits.max_step_tokens);
  state.prefill_tokens_beside_decodes = figures_.prefill_budget;
  state.references = ledger_.pool().references();
  for (auto& [name, client] : shares_.clients()) {
    client.index = static_cast<int32_t>(state.client_service.size());
    state.client_service.push_back(client.service);
  }
  if (running_.has_value()) state.labels_in_flight = running_->labels;
  // First, because it may take a block out of the cache.
  for (const auto& sequence : sequences_) ledger_.SettleFork(sequence->page);
  state.sequences.reserve(sequences_.size());
  for (const auto& sequence : sequences_) {
    // What runs is its last token.
    if (sequence->awaits_fork || sequence->may_generate() < 1) continue;
    RefreshView(*sequence);
    state.sequences.push_back(sequence->view);
  }
  // After the views, because catching up lets blocks go.
  state.blocks_available = ledger_.pool().blocks_available();
  return Schedule(state);
}

void Engine::ApplyPlan(const StepPlan& plan, StepBatch& batch) {
  for (uint64_t id : plan.preempted) {
    ReleaseBlocks(*by_id_.at(id));
    ++figures_.preemptions;
  }
  // Cached blocks are held before any block is added, which might evict them.
  for (const PlannedSlice& slice : plan.slices) {
    Sequence& sequence = *by_id_.at(slice.sequence_id);
    if (sequence.view.running) continue;
    sequence.view.tokens_computed = ledger_.TakeMatch(sequence.page);
    sequence.view.running = true;
  }
  for (const PlannedSlice& slice : plan.slices) {
    Sequence& sequence = *by_id_.at(slice.sequence_id);
    const size_t first_added = sequence.page.blocks.size();
    const BlockId source = ledger_.Add(sequence.page, slice.blocks_to_add);
    if (source != kNoBlock) {
      batch.copies.push_back({source, sequence.page.blocks[first_added]});
      ++figures_.blocks_copied;
    }
    sequence.client->service += slice.token_count;
  }
  for (auto& sequence : sequences_) {
    if (!sequence->view.running) ++sequence->view.steps_waited;
  }
}

void Engine::FillBatch(const StepPlan& plan, StepBatch& batch, RunningStep& step) {
  static constexpr int32_t kInFlight = 0;  // in the place of a token that is not known
  samplings_.clear();
  samplings_.reserve(plan.slices.size());
  for (const PlannedSlice& slice : plan.slices) {
    Sequence& sequence = *by_id_.at(slice.sequence_id);
    const int32_t first = sequence.view.tokens_computed;
    const bool last = first + slice.token_count == sequence.view.tokens_known;
    if (last && !FillMask(sequence)) continue;
    SequenceSlice& filled = batch.slices.emplace_back();
    filled.first_position = first;
    filled.block_table = sequence.page.blocks;
    filled.wants_logits = last;
    if (sequence.in_flight > 0) {
      filled.token_ids = absl::MakeConstSpan(&kInFlight, 1);
      filled.follows = sequence.place_in_flight;
    } else {
      filled.token_ids = absl::MakeConstSpan(sequence.tokens).subspan(first, slice.token_count);
    }
    // Alternatives and forks need the logits themselves.
    if (last && sequence.sampling.top_logprobs <= 0 && sequence.forks.empty()) {
      samplings_.push_back(sequence.next_draw());
      filled.sampling = &samplings_.back();
    }
    step.parts.push_back({slice.sequence_id, first + slice.token_count, last});
    if (sequence.view.next_block_label != 0) {
      step.labels.push_back(sequence.view.next_block_label);
    }
  }
}

// For the sequence's next draw, where it has a constraint. False, and it has failed, when that
// gives none.
bool Engine::FillMask(Sequence& sequence) {
  if (sequence.constraint == nullptr) return true;
  const int32_t vocabulary_size = model_->vocabulary_size();
  sequence.mask.assign(static_cast<size_t>(MaskWords(vocabulary_size)), 0);
  absl::Status status = sequence.constraint->FillMask(absl::MakeSpan(sequence.mask));
  if (status.ok() && !AllowsAny(sequence.mask, vocabulary_size)) {
    status = absl::InternalError(absl::StrCat("it allows no token after the first ",
                                              sequence.generated_count(), " of the answer"));
  }
  if (!status.ok()) FailWithForks(sequence, FailureOf(status));
  return status.ok();
}

// The step is on its way: what its sequences will have.
void Engine::Advance(const StepBatch& batch, RunningStep& step) {
  for (size_t i = 0; i < step.parts.size(); ++i) {
    Sequence& sequence = *by_id_.at(step.parts[i].sequence_id);
    const auto count = static_cast<int32_t>(batch.slices[i].token_ids.size());
    const int32_t of_prompt =
        std::min(count, sequence.prompt_count() - sequence.view.tokens_computed);
    if (of_prompt > 0) figures_.prompt_tokens += static_cast<uint64_t>(of_prompt);
    if (!sequence.has_logits) sequence.prompt_computed += std::max(of_prompt, 0);
    sequence.view.tokens_computed = step.parts[i].computed;
    if (!step.parts[i].wants_token) {
      step.prefill_tokens += count;
      continue;
    }
    ++(count == 1 ? step.decodes : step.prefill_tokens);
    if (count > 1) step.prefill_tokens += count - 1;
    sequence.place_in_flight = step.wanting++;
    ++sequence.in_flight;
    sequence.CountKnown();
  }
}

// Begins what was planned. None, and its sequences failed, when the model cannot.
std::optional<Engine::RunningStep> Engine::Begin(const StepPlan& plan) {
  StepBatch batch;
  RunningStep step;
  ApplyPlan(plan, batch);
  FillBatch(plan, batch, step);
  RemoveEnded();  // whose constraints failed
  if (batch.slices.empty()) return std::nullopt;
  step.begun = clock_->Now();
  const absl::Status status = StartModel(batch, step);
  if (!status.ok()) {
    FailStep(step, status);
    ++figures_.steps;
    figures_.last_step = clock_->Now();
    return std::nullopt;
  }
  Advance(batch, step);
  return step;
}

absl::Status Engine::StartModel(const StepBatch& batch, RunningStep& step) {
  if (pipeline_ != nullptr) {
    ASSIGN_OR_RETURN(step.draws_all, pipeline_->Start(batch));
    return absl::OkStatus();
  }
  const auto wanting = static_cast<size_t>(
      std::count_if(step.parts.begin(), step.parts.end(),
                    [](const RunningStep::Part& part) { return part.wants_token; }));
  const size_t room = wanting * static_cast<size_t>(model_->vocabulary_size());
  logits_.resize(std::max(logits_.size(), room));
  drawn_.assign(wanting, {});
  return model_->Forward(batch, absl::MakeSpan(logits_).first(room), absl::MakeSpan(drawn_));
}

std::optional<Engine::RunningStep> Engine::BeginAhead() {
  const StepPlan plan = MakePlan();
  if (plan.slices.empty() || !plan.preempted.empty()) return std::nullopt;
  return Begin(plan);
}

Engine::Sequence* Engine::Find(uint64_t sequence_id) {
  const auto found = by_id_.find(sequence_id);
  return found == by_id_.end() || found->second->ended ? nullptr : found->second;
}

// Waits for the step, and gives its tokens to those of its sequences that are still here.
void Engine::FinishStep(const RunningStep& step) {
  const auto vocabulary_size = static_cast<size_t>(model_->vocabulary_size());
  absl::Status status;
  if (pipeline_ != nullptr) {
    const auto wanting = static_cast<size_t>(step.wanting);
    const size_t room = step.draws_all ? 0 : wanting * vocabulary_size;
    logits_.resize(std::max(logits_.size(), room));
    drawn_.assign(wanting, {});
    status = pipeline_->Finish(absl::MakeSpan(logits_).first(room), absl::MakeSpan(drawn_));
  }
  if (!status.ok()) {
    FailStep(step, status);
  } else {
    for (const RunningStep::Part& part : step.parts) {
      Sequence* const sequence = Find(part.sequence_id);
      if (sequence != nullptr) ledger_.Publish(sequence->page, sequence->tokens, part.computed);
    }
    size_t place = 0;
    for (const RunningStep::Part& part : step.parts) {
      if (!part.wants_token) continue;
      const size_t row = place++;
      Sequence* const sequence = Find(part.sequence_id);
      if (sequence == nullptr) continue;
      --sequence->in_flight;
      absl::Span<float> logits = absl::MakeSpan(logits_);
      if (!drawn_[row].is_drawn) logits = logits.subspan(row * vocabulary_size, vocabulary_size);
      Draw(*sequence, logits, drawn_[row]);
    }
  }
  const absl::Duration took = clock_->Now() - std::max(step.begun, figures_.last_step);
  pace_.Observe(step.decodes, step.prefill_tokens, took);
  ++figures_.steps;
  figures_.step_ms = Average(figures_.step_ms, absl::ToDoubleMilliseconds(took));
  figures_.prefill_tokens_per_second = pace_.prefill_tokens_per_second();
  figures_.last_step = clock_->Now();
}

// The sequence's next token, which the model has drawn, or which is drawn here from its logits.
void Engine::Draw(Sequence& sequence, absl::Span<float> logits, const DrawnToken& drawn) {
  CountPrompt(sequence);
  if (drawn.is_drawn) return Consume(sequence, SampledFrom(drawn, sequence.sampling));
  if (!sequence.forks.empty()) ForkFrom(sequence, logits);
  Consume(sequence, Sample(logits, sequence.next_draw(), scratch_));
}

// What was planned was not computed: its sequences fail, and those that wait to be forked from
// them.
void Engine::FailStep(const RunningStep& step, const absl::Status& status) {
  LogError("engine", "forward pass failed", {{"error", status.ToString()}});
  const Failure failure{FailureCode::kInternal, "the model failed to compute this step", ""};
  for (const RunningStep::Part& part : step.parts) {
    Sequence* const sequence = Find(part.sequence_id);
    if (sequence != nullptr) FailWithForks(*sequence, failure);
  }
}

// At a sequence's first logits: what of its prompt the cache had.
void Engine::CountPrompt(Sequence& sequence) {
  if (std::exchange(sequence.has_logits, true)) return;
  sequence.prompt_cached = std::max(0, sequence.prompt_count() - sequence.prompt_computed);
  ++figures_.prefix_lookups;
  figures_.prefix_queried_tokens += static_cast<uint64_t>(sequence.prompt_count());
  figures_.prefix_hit_tokens += static_cast<uint64_t>(sequence.prompt_cached);
}

// The prompt of `leader` is computed, `logits` [vocabulary_size] follow it. Each fork draws its own
// first token from them. As many as there are slots for go on with the leader's blocks; the others
// wait and will find the prompt's full blocks in the cache.
void Engine::ForkFrom(Sequence& leader, absl::Span<const float> logits) {
  int32_t slots = options_.limits.max_sequences;
  for (const auto& sequence : sequences_) slots -= sequence->view.running ? 1 : 0;
  for (Sequence* fork : std::exchange(leader.forks, {})) {
    fork->awaits_fork = false;
    fork->has_logits = true;
    fork->prompt_cached = leader.prompt_cached;
    fork->mask = leader.mask;  // their constraints are in the same state
    fork_logits_.assign(logits.begin(), logits.end());
    Consume(*fork, Sample(absl::MakeSpan(fork_logits_), fork->next_draw(), scratch_));
    if (fork->ended || slots-- <= 0) continue;
    ledger_.Fork(leader.page, fork->page, leader.view.tokens_computed);
    fork->view.running = true;
    fork->view.tokens_computed = leader.view.tokens_computed;
    ++figures_.forks;
  }
}

void Engine::Consume(Sequence& sequence, absl::StatusOr<Sampled> sampled) {
  if (!sampled.ok()) {
    const std::string error(sampled.status().message());
    // Of the model, then; a constraint that leaves nothing is its request's own.
    if (absl::IsInternal(sampled.status())) LogError("engine", error);
    return FailSequence(sequence, {FailureCode::kInternal, error, ""});
  }
  const int32_t token_id = sampled->token_id;
  const bool is_end = vocabulary_->EndsGeneration(token_id) && !sequence.sampling.ignore_eos;
  if (sequence.constraint != nullptr && !is_end) {
    const absl::Status accepted = sequence.constraint->Accept(token_id);
    if (!accepted.ok()) return FailSequence(sequence, FailureOf(accepted));
  }
  ++figures_.generated_tokens;
  SequenceDelta& delta = DeltaOf(sequence);
  if (sampled->logprob) delta.logprobs.push_back(*std::move(sampled->logprob));
  AppendToken(sequence, token_id, delta);
}

void Engine::AppendToken(Sequence& sequence, int32_t token_id, SequenceDelta& delta) {
  sequence.Append(token_id);
  delta.token_ids.push_back(token_id);
  if (vocabulary_->EndsGeneration(token_id) && !sequence.sampling.ignore_eos) {
    return End(sequence, FinishReason::kStop);
  }
  delta.text += sequence.text.Append(vocabulary_->TokenBytes(token_id));
  if (sequence.text.stopped()) {
    return End(sequence, FinishReason::kStop, sequence.text.matched_stop());
  }
  if (sequence.is_complete()) return End(sequence, FinishReason::kStop);
  if (sequence.generated_count() >= sequence.request->max_new_tokens) {
    End(sequence, FinishReason::kLength);
  }
}

// Memory is short and nothing fits into the blocks that there are: the youngest request makes room.
void Engine::ShedYoungest() {
  const Request* youngest = sequences_.back()->request.get();
  for (auto& sequence : sequences_) {
    if (sequence->request.get() != youngest) continue;
    FailSequence(*sequence, {FailureCode::kOverloaded,
                             "the worker has reached its memory limit: try again later", ""});
  }
}

}  // namespace rempart::worker
